"""Text from a model: cached decoding of one prompt or many, with tool calls.

Shapes: B batch, T prompt columns, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from nanochat_core.errors import ConfigError
from nanochat_core.inference.sampler import Sampler, SamplingSettings, pick_each
from nanochat_core.inference.sequences import ActiveSequence
from nanochat_core.inference.streaming import Piece, ReplyDecoder
from nanochat_core.inference.tools import ToolCalls
from nanochat_core.model.gpt import GPT
from nanochat_core.model.kv_cache import KVCache
from nanochat_core.tokenizer.tokenizer import Tokenizer

CACHE_STEP = 128
"""A cache grows by this many tokens, so that short replies do not pay for long ones."""


@dataclass(frozen=True)
class Reply:
    """The tokens of a reply, and of each whether the model sampled it or a tool made it."""

    tokens: list[int]
    is_sampled: list[bool]


class InferenceEngine:
    """Answers prompts with one model; holds no state between calls.

    The tokenizer is `model.tokenizer` (as `CheckpointManager` attaches it) unless one is given.
    """

    def __init__(self, model: GPT, tokenizer: Tokenizer | None = None) -> None:
        found = tokenizer or getattr(model, "tokenizer", None)
        if not isinstance(found, Tokenizer):
            raise ConfigError(
                "the model has no tokenizer attached; give InferenceEngine(model, tokenizer), or "
                "load the model with CheckpointManager"
            )
        self.model, self.tokenizer = model, found
        self.stop_tokens = frozenset({found.bos_id, found.special_id("assistant_end")})

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
        decoder = ReplyDecoder(self.tokenizer)
        for token in self.generate_ids(prompt, settings, max_new_tokens=max_new_tokens):
            piece = decoder.feed(token)
            if piece is not None:
                yield piece
        rest = decoder.finish()
        if rest is not None:
            yield rest

    def generate_ids(
        self, prompt: Sequence[int], settings: SamplingSettings, *, max_new_tokens: int
    ) -> Iterator[int]:
        """Tokens of a reply, tool output included, up to `assistant_end` or bos (not yielded)."""
        sequence = self._sequence(prompt, settings, max_new_tokens)
        for _ in self._steps([sequence]):
            if not sequence.is_stopped:
                yield sequence.reply[-1]

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
    ) -> list[Reply]:
        """`generate_batch`, with word of which tokens were sampled.

        `stop_requested` is asked after each token of the batch; replies end there when it says so.
        """
        if seeds is None:
            seeds = [settings.seed + i for i in range(len(prompts))]
        sequences = [
            self._sequence(prompt, replace(settings, seed=seed), max_new_tokens)
            for prompt, seed in zip(prompts, seeds, strict=True)
        ]
        for _ in self._steps(sequences):
            if stop_requested():
                break
        return [Reply(sequence.reply, sequence.is_sampled) for sequence in sequences]

    def _sequence(
        self, prompt: Sequence[int], settings: SamplingSettings, max_new_tokens: int
    ) -> ActiveSequence:
        limit = self.model.max_positions
        if not 0 < len(prompt) < limit:
            raise ConfigError(
                f"a prompt of {len(prompt):,} tokens; this model takes 1 to {limit - 1:,} "
                "(10 x sequence_len): shorten it"
            )
        if max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens={max_new_tokens}; give at least 1")
        return ActiveSequence(
            prompt=list(prompt),
            sampler=Sampler(settings),
            tools=ToolCalls(self.tokenizer),
            stop_tokens=self.stop_tokens,
            max_new_tokens=max_new_tokens,
            max_length=limit,
        )

    def _steps(self, sequences: Sequence[ActiveSequence]) -> Iterator[None]:
        """Give every unfinished sequence one token at a time; yields after each."""
        active, cache = list(sequences), None
        while active:
            # Entered anew for each token: a caller between two of them keeps its own mode.
            with torch.inference_mode():
                if cache is None:
                    cache, logits_BV = self._prefill(active)
                else:
                    logits_BV = self._decode(active, cache)
                _extend(active, logits_BV)
                kept = [row for row, sequence in enumerate(active) if not sequence.is_done]
                if len(kept) < len(active):
                    active = [active[row] for row in kept]
                    cache.keep(kept)
            yield

    def _prefill(self, sequences: list[ActiveSequence]) -> tuple[KVCache, torch.Tensor]:
        """Read each different prompt once; sequences that share it get a copy of its cache."""
        prompts = list(dict.fromkeys(tuple(sequence.prompt) for sequence in sequences))
        lengths = [len(prompt) for prompt in prompts]
        longest, device = max(lengths), self.model.device
        rows = [[*prompt, *[0] * (longest - len(prompt))] for prompt in prompts]
        room = min(CACHE_STEP, max(sequence.max_new_tokens for sequence in sequences))
        cache = KVCache(
            self.model.config, len(rows), longest + room, self.model.compute_dtype, device
        )
        logits_B1V = self.model.forward_cached(
            torch.tensor(rows, device=device), cache, num_valid=lengths, last_only=True
        )
        if len(prompts) == len(sequences):
            return cache, logits_B1V[:, 0]
        row_of = {prompt: row for row, prompt in enumerate(prompts)}
        copies = [row_of[tuple(sequence.prompt)] for sequence in sequences]
        cache.keep(copies)
        return cache, logits_B1V[copies, 0]

    def _decode(self, sequences: list[ActiveSequence], cache: KVCache) -> torch.Tensor:
        if cache.room == 0:
            cache.grow(cache.capacity + max(CACHE_STEP, cache.capacity // 2))
        last = [[sequence.reply[-1]] for sequence in sequences]
        tokens_B1 = torch.tensor(last, device=self.model.device)
        return self.model.forward_cached(tokens_B1, cache)[:, 0]


def _extend(sequences: list[ActiveSequence], logits_BV: torch.Tensor) -> None:
    """Append one token to each: the tool's next one, or one that its sampler picks."""
    rows = [row for row, sequence in enumerate(sequences) if not sequence.forced]
    for sequence in sequences:
        if sequence.forced:
            sequence.append_forced()
    if not rows:
        return
    if len(rows) < len(sequences):
        logits_BV = logits_BV[rows]
    samplers = [sequences[row].sampler for row in rows]
    for row, token in zip(rows, pick_each(logits_BV, samplers), strict=True):
        sequences[row].append_sampled(token)
