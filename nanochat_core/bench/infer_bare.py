"""The model in a loop, without an engine: what one request costs at least in this framework.

The same forward pass and cache, in as few words as decode greedily: nothing is queued, shared,
stopped, counted or turned into text. Where the engine replays recorded kernels, on a GPU, it can be
faster than this.
"""

import time

import torch

from nanochat_core.bench.infer_setup import Subject
from nanochat_core.bench.roofline import synchronize
from nanochat_core.inference.cached_model import CachedModel
from nanochat_core.inference.passes import DecodePass, PrefillPass
from nanochat_core.inference.row_cache import RowCache


class BareLoop:
    """One prompt at a time, in a cache that is there already."""

    def __init__(self, subject: Subject) -> None:
        self.subject, self.model = subject, CachedModel(subject.model)
        self.cache = RowCache(
            subject.model.config,
            subject.model.compute_dtype,
            subject.model.device,
            num_rows=1,
            capacity=subject.prompt + subject.new,
        )

    def seconds(self, seed: int) -> float:
        """From the prompt of a seed to the last token of its reply."""
        prompt = list(self.subject.requests(1, seed)[0].prompt)
        device = self.subject.model.device
        synchronize(device)
        started = time.perf_counter()
        self.reply(prompt)
        synchronize(device)
        return time.perf_counter() - started

    @torch.inference_mode()
    def reply(self, prompt: list[int]) -> list[int]:
        """The likeliest tokens, one after the other."""
        step: PrefillPass | DecodePass = PrefillPass(
            self.cache,
            [prompt],
            [self.model.nothing],
            first_row=0,
            start=0,
            bands=self.model.bands,
        )
        tokens = [*prompt, int(self.model.forward(step).argmax())]
        while len(tokens) < len(prompt) + self.subject.new:
            before, last = tokens[-2:]
            step = DecodePass(self.cache, [last], [before], [len(tokens) - 1])
            tokens.append(int(self.model.forward(step).argmax()))
        return tokens[len(prompt) :]
