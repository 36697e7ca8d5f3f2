"""Text from a model: many prompts at once, each joining and leaving while the others go on.

Shapes: B sequences, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count

import torch
from pydantic import Field

from nanochat_core.config.base import Config
from nanochat_core.errors import ConfigError
from nanochat_core.inference.cached_model import CachedModel
from nanochat_core.inference.graphs import GraphedDecode
from nanochat_core.inference.logprobs import token_logprobs
from nanochat_core.inference.passes import PrefillPass
from nanochat_core.inference.requests import EngineStats, Output, Request, TokenLogprob
from nanochat_core.inference.row_cache import RowCache
from nanochat_core.inference.rows import Rows
from nanochat_core.inference.runner import Runner
from nanochat_core.inference.sampler import pick_each
from nanochat_core.inference.scheduler import Limits, Scheduler
from nanochat_core.inference.sequences import ActiveSequence
from nanochat_core.inference.settings import SamplingSettings
from nanochat_core.inference.streaming import Piece
from nanochat_core.model.gpt import GPT
from nanochat_core.model.loss import soft_cap
from nanochat_core.tokenizer.tokenizer import Tokenizer


class EngineSettings(Config):
    """How much an engine does at once; none of it changes what a reply says, save by rounding.

    `is_exact` computes every sequence alone: a request gets the same bits whatever else runs, for
    the price of the speed that batches bring.
    """

    num_rows: int = Field(default=256, ge=1, description="sequences that run at once")
    max_length: int = Field(default=0, ge=0, description="tokens of one; 0: all the model takes")
    chunk_tokens: int = Field(default=512, ge=1, description="of prompts, between two decode steps")
    cache_gigabytes: float = Field(default=4.0, gt=0, description="of keys and values")
    cache_tokens: int = Field(default=0, ge=0, description="the same in tokens; 0: not limited so")
    is_exact: bool = False
    use_graphs: bool = Field(default=True, description="CUDA graphs, on a GPU")
    is_compiled: bool = Field(default=False, description="compile what the graphs record")


@dataclass(frozen=True)
class GeneratedReply:
    """The tokens of a reply, and of each whether the model sampled it or a tool made it."""

    tokens: list[int]
    is_sampled: list[bool]

    def take(self, output: Output) -> None:
        """Append the token of a step, if it has one."""
        if output.token is not None:
            self.tokens.append(output.token)
            self.is_sampled.append(output.is_sampled)


class InferenceEngine:
    """Answers requests with one model: `submit`, then `step` until their outputs say it is over.

    The other methods do that for a prompt or many, after taking over the model's weights as they
    are then. The tokenizer is `model.tokenizer` (as `CheckpointManager` attaches it) unless one is
    given. Not for several threads.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer | None = None,
        settings: EngineSettings | None = None,
    ) -> None:
        found = tokenizer or getattr(model, "tokenizer", None)
        if not isinstance(found, Tokenizer):
            raise ConfigError(
                "the model has no tokenizer attached; give InferenceEngine(model, tokenizer), or "
                "load the model with CheckpointManager"
            )
        self.model, self.tokenizer = model, found
        self.settings = settings or EngineSettings()
        self.max_length = min(self.settings.max_length or 1 << 62, model.max_positions)
        self._ids = count()
        self.stop_tokens = frozenset({found.bos_id, found.special_id("assistant_end")})
        self._unread: list[Output] = []
        """Of requests that others submitted, made while one of our own was run."""
        self._prompt_tokens = self._sampled_tokens = self._num_steps = 0
        self._set_up()

    def _set_up(self) -> None:
        settings, cached = self.settings, CachedModel(self.model)
        cache = RowCache(self.model.config, cached.dtype, cached.device)
        cache_tokens = int(settings.cache_gigabytes * 2**30) // cache.bytes_per_token
        if settings.cache_tokens:
            cache_tokens = min(cache_tokens, settings.cache_tokens)
        limits = Limits(
            num_rows=settings.num_rows,
            chunk_tokens=settings.chunk_tokens,
            cache_tokens=cache_tokens,
            is_exact=settings.is_exact,
        )
        self._rows = Rows(cache, settings.num_rows, cache_tokens)
        self._scheduler = Scheduler(self._rows, limits)
        graphs = None
        if cached.device.type == "cuda" and settings.use_graphs and not settings.is_exact:
            graphs = GraphedDecode(cached, cache, is_compiled=settings.is_compiled)
        self._runner = Runner(cached, cache, is_exact=settings.is_exact, graphs=graphs)

    def submit(self, request: Request) -> int:
        """Queue a request; returns the id that its outputs carry.

        Raises ConfigError for a prompt that is empty or leaves no room for a reply.
        """
        if not 0 < len(request.prompt) < self.max_length:
            raise ConfigError(
                f"a prompt of {len(request.prompt):,} tokens; this model takes 1 to "
                f"{self.max_length - 1:,}: shorten it"
            )
        sequence_id = next(self._ids)
        sequence = ActiveSequence.start(
            sequence_id, request, self.tokenizer, self.stop_tokens, self.max_length
        )
        self._scheduler.waiting.append(sequence)
        self._prompt_tokens += len(request.prompt)
        return sequence_id

    def cancel(self, sequence_id: int) -> None:
        """Forget a request; its row is free for the next step. An id that is over is no error."""
        self._scheduler.cancel(sequence_id)
        self._unread = [output for output in self._unread if output.sequence_id != sequence_id]

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return bool(self._scheduler.waiting or self._rows.num_running or self._unread)

    def step(self) -> list[Output]:
        """Read a chunk of the prompts that wait, and give every sequence beyond its prompt a token.

        Returns what came of it. A caller of many steps saves time if it is in inference mode
        already.
        """
        if torch.is_inference_mode_enabled():
            return self._step()
        with torch.inference_mode():
            return self._step()

    def _step(self) -> list[Output]:
        outputs, self._unread = self._unread, []
        chunk, decoding = self._scheduler.schedule()
        if chunk is not None:
            logits_BV = self._runner.prefill(chunk)
            outputs += self._advance(*self._scheduler.prefilled(chunk, logits_BV))
        if decoding:
            outputs += self._advance(decoding, self._runner.decode(decoding))
        self._scheduler.retire(outputs)
        self._num_steps += 1
        return outputs

    def _advance(
        self, sequences: Sequence[ActiveSequence], logits_BV: torch.Tensor
    ) -> list[Output]:
        """Append one token to each: the tool's next one, or one that its sampler picks."""
        rows = [row for row, sequence in enumerate(sequences) if not sequence.forced]
        if len(rows) == len(sequences):
            return self._sample(sequences, logits_BV)
        outputs = [sequence.append_forced() for sequence in sequences if sequence.forced]
        return outputs + self._sample([sequences[row] for row in rows], logits_BV[rows])

    def _sample(self, sequences: Sequence[ActiveSequence], logits_BV: torch.Tensor) -> list[Output]:
        """Append to each the token that its sampler picks."""
        if not sequences:
            return []
        self._sampled_tokens += len(sequences)
        tokens, logprobs = self._pick(logits_BV, sequences)
        return list(map(ActiveSequence.append_sampled, sequences, tokens, logprobs))

    def _pick(
        self, logits_BV: torch.Tensor, sequences: Sequence[ActiveSequence]
    ) -> tuple[list[int], list[TokenLogprob | None]]:
        """A token for each, and its log-probability where that is asked for."""
        if self.settings.is_exact and len(sequences) > 1:
            # In memory of its own each: kernels round by how an address is aligned, too.
            alone = [
                self._pick(logits_V[None].clone(), [sequence])
                for sequence, logits_V in zip(sequences, logits_BV, strict=True)
            ]
            return [tokens[0] for tokens, _ in alone], [logprobs[0] for _, logprobs in alone]
        tokens = pick_each(logits_BV, [sequence.sampler for sequence in sequences])
        counts = [sequence.request.num_logprobs for sequence in sequences]
        return tokens, token_logprobs(logits_BV, tokens, counts)

    @property
    def stats(self) -> EngineStats:
        """How full the engine is, and what it did so far."""
        rows = self._rows
        return EngineStats(
            num_running=rows.num_running,
            num_waiting=len(self._scheduler.waiting),
            num_rows=self.settings.num_rows,
            num_cached_tokens=sum(sequence.num_cached for sequence in rows.running),
            capacity_tokens=min(
                self.settings.num_rows * self.max_length, self._scheduler.limits.cache_tokens
            ),
            num_prefix_tokens=self._scheduler.num_prefix_tokens,
            num_prompt_tokens=self._prompt_tokens,
            num_sampled_tokens=self._sampled_tokens,
            num_steps=self._num_steps,
        )

    def refresh(self) -> None:
        """Take over weights that have changed since; nothing may run."""
        if self.has_work:
            raise ConfigError("requests are running; change the weights when they are done")
        self._runner.model.refresh()
        self._rows.forget()

    def generate(
        self,
        prompt: str,
        *,
        max_new_tokens: int = 256,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Continue a text; returns the new text alone, without tool calls.

        `max_new_tokens` counts sampled tokens. Raises ConfigError for settings that cannot work
        and for a prompt that leaves no room.
        """
        settings = SamplingSettings(temperature, top_k, top_p, seed)
        ids = [self.tokenizer.bos_id, *self.tokenizer.encode(prompt)]
        pieces = self.stream(ids, settings, max_new_tokens=max_new_tokens)
        return "".join(piece.text for piece in pieces if piece.kind == "text")

    def stream(
        self, prompt: Sequence[int], settings: SamplingSettings, *, max_new_tokens: int
    ) -> Iterator[Piece]:
        """Pieces of a reply as soon as they are readable; each is whole characters of one kind."""
        request = Request(tuple(prompt), settings, max_new_tokens)
        for outputs in self._run([request]):
            for _, output in outputs:
                yield from output.pieces

    def generate_ids(
        self, prompt: Sequence[int], settings: SamplingSettings, *, max_new_tokens: int
    ) -> Iterator[int]:
        """Tokens of a reply, tool output included, up to `assistant_end` or bos (not yielded)."""
        request = Request(tuple(prompt), settings, max_new_tokens, wants_text=False)
        for outputs in self._run([request]):
            yield from (output.token for _, output in outputs if output.token is not None)

    def generate_batch(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        *,
        max_new_tokens: int,
        seeds: Sequence[int] | None = None,
    ) -> list[list[int]]:
        """Replies to prompts of any lengths; prompt i samples with `seeds[i]`, or `seed + i`."""
        replies = self.generate_replies(
            prompts, settings, max_new_tokens=max_new_tokens, seeds=seeds
        )
        return [reply.tokens for reply in replies]

    def generate_replies(
        self,
        prompts: Sequence[Sequence[int]],
        settings: SamplingSettings,
        *,
        max_new_tokens: int,
        seeds: Sequence[int] | None = None,
        stop_requested: Callable[[], bool] = lambda: False,
    ) -> list[GeneratedReply]:
        """`generate_batch`, with word of which tokens were sampled.

        `stop_requested` is asked after each step; replies end there when it says so.
        """
        if seeds is None:
            seeds = [settings.seed + i for i in range(len(prompts))]
        requests = [
            Request(tuple(prompt), replace(settings, seed=seed), max_new_tokens, wants_text=False)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        replies = [GeneratedReply([], []) for _ in requests]
        for outputs in self._run(requests):
            for number, output in outputs:
                replies[number].take(output)
            if stop_requested():
                break
        return replies

    def replies(
        self, requests: Sequence[Request], *, on_step: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[int, GeneratedReply]]:
        """Each reply when it ends, with the number of its request; in any order.

        `on_step` is called after each step; what it raises ends everything.
        """
        replies = [GeneratedReply([], []) for _ in requests]
        for outputs in self._run(requests):
            for number, output in outputs:
                replies[number].take(output)
                if output.finish_reason is not None:
                    yield number, replies[number]
            on_step()

    def last_logits(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits (B, V) after the last token of each prompt, float32 on the CPU."""
        model = self._runner.model
        longest = max(map(len, prompts))
        with torch.inference_mode():
            model.refresh()
            cache = RowCache(
                model.config, model.dtype, model.device, num_rows=len(prompts), capacity=longest
            )
            nothing = [model.nothing] * len(prompts)
            step = PrefillPass(cache, prompts, nothing, first_row=0, start=0, bands=model.bands)
            return soft_cap(model.forward(step)).cpu()

    def _run(self, requests: Sequence[Request]) -> Iterator[list[tuple[int, Output]]]:
        """Outputs of these requests, each with its number among them, step by step."""
        if not self.has_work:
            self.refresh()
        number_of: dict[int, int] = {}
        try:
            for number, request in enumerate(requests):
                number_of[self.submit(request)] = number
            num_left = len(requests)
            while num_left:
                mine = []
                for output in self.step():
                    if output.sequence_id in number_of:
                        mine.append((number_of[output.sequence_id], output))
                        num_left -= output.finish_reason is not None
                    else:
                        self._unread.append(output)
                yield mine
        finally:
            for sequence_id in number_of:
                self.cancel(sequence_id)
