"""Random mixes of requests for an engine, each from its seed alone: what comes when, what is gone.

The models are tiny and all their parameters random, so that every part of them counts. Some have
habits: chains of tokens that are likely to follow each other, through a tool call to a stop token.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch

from nanochat_core.inference.cached_model import CachedModel
from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from nanochat_core.inference.graphs import GraphedDecode, static_decode
from nanochat_core.inference.requests import UNLIMITED, EngineStats, Request
from nanochat_core.inference.row_cache import RowCache
from nanochat_core.inference.runner import Runner
from nanochat_core.inference.settings import GREEDY, SamplingSettings
from nanochat_core.model.config import ModelConfig
from nanochat_core.model.gpt import GPT
from nanochat_core.tokenizer.tokenizer import Tokenizer
from tests.inference.reference import Observed
from tests.inference.scripted import byte_tokenizer
from tests.model.builders import random_model

TOKENIZER = byte_tokenizer()
WINDOW_MULTIPLE = 8
"""For `model.config.WINDOW_MULTIPLE`: windows of 8 keys and more, which short prompts outgrow."""
MAX_PROMPT = 90
LONG_PROMPT = 330
"""More than the engine has memory for at first, and than a chunk of any mix."""
MAX_STEPS = 3000
HABITS = (
    (*"abcdefg", "python_start", *"6*7", "python_end"),
    ("output_end", *"mnopqr", "assistant_end"),
)
"""What is likely to follow what: a tool call, and what is said after one."""
HABIT_STRENGTH, HABIT_X0 = 4.0, 1.0
"""Makes each follow in 7 of 10 cases: every part of the model still has a say."""


@dataclass(frozen=True)
class Mix:
    """One model, one engine, and what is asked of it."""

    seed: int
    config: ModelConfig
    settings: EngineSettings
    max_prompt: int
    num_requests: int
    num_cancels: int
    has_habits: bool
    is_static: bool
    """Whether decoding takes the fixed shapes that CUDA graphs need."""

    def model(self) -> GPT:
        """Equal bits each time."""
        model = random_model(self.config, seed=self.seed)
        if not self.has_habits:
            return model
        with torch.no_grad():
            model.x0_lambdas.fill_(HABIT_X0)
            for token, successor in _habits(TOKENIZER):
                likely = torch.nn.functional.normalize(model.wte.weight[token], dim=0)
                model.lm_head.weight[successor] += HABIT_STRENGTH * likely
        return model


def random_mix(seed: int) -> Mix:
    """Sizes that make trouble likely: few rows, small chunks, tight windows."""
    rng = random.Random(seed)
    is_exact, is_long = seed % 8 == 7, seed % 19 == 3
    config = ModelConfig(
        sequence_len=40 if is_long else rng.choice([24, 32, 40]),
        vocab_size=TOKENIZER.vocab_size,
        n_layer=rng.choice([2, 2, 3, 4]),
        n_head=4,
        n_kv_head=rng.choice([1, 1, 2, 2, 4]),
        n_embd=32,
        window_pattern=rng.choice(["SL", "SSL", "SSSL", "L", "LS"]),
    )
    token_bytes = 2 * config.n_layer * config.kv_dim * torch.float32.itemsize
    tight_gigabytes = rng.randint(150, 400) * token_bytes / 2**30
    settings = EngineSettings(
        num_rows=rng.randint(1, 6),
        max_length=400 if is_long else rng.choice([100, 120, 160]),
        chunk_tokens=rng.choice([32, 64]) if is_long else rng.choice([3, 8, 17, 32, 64]),
        cache_gigabytes=tight_gigabytes if rng.random() < 0.25 else 1.0,
        is_exact=is_exact,
    )
    return Mix(
        seed=seed,
        config=config,
        settings=settings,
        max_prompt=LONG_PROMPT if is_long else MAX_PROMPT,
        num_requests=rng.randint(4, 6) if is_exact or is_long else rng.randint(6, 8),
        num_cancels=rng.randint(0, 3),
        has_habits=rng.random() < 0.6,
        is_static=seed % 4 == 1,
    )


@dataclass
class MixRun:
    """A mix while it runs; `seen` holds what was said of each sequence, by its id."""

    mix: Mix
    engine: InferenceEngine
    rng: random.Random
    seen: dict[int, Observed] = field(default_factory=dict)
    num_submitted: int = 0
    num_cancelled_waiting: int = 0
    num_cancelled_running: int = 0
    most_running: int = 0

    def run(self) -> None:
        """Submit, cancel and step until nothing is left."""
        cancels_left = self.mix.num_cancels
        wait = 0
        for _ in range(MAX_STEPS):
            while wait == 0 and self.num_submitted < self.mix.num_requests:
                self._submit()
                wait = self.rng.choice([0, 0, 1, 2, 5, 12, 30])
            if cancels_left and self.rng.random() < 0.1 and self.live:
                cancels_left -= 1
                self._cancel()
            if not self.engine.has_work and self.num_submitted == self.mix.num_requests:
                return
            self._step()
            wait = max(0, wait - 1)
        raise AssertionError(f"not done after {MAX_STEPS} steps: {self.engine.stats}")

    @property
    def live(self) -> list[int]:
        """Sequences that are neither finished nor cancelled."""
        return [i for i, s in self.seen.items() if not s.is_cancelled and s.finish_reason is None]

    def _submit(self) -> None:
        request = self._request()
        sequence_id = self.engine.submit(request)
        assert sequence_id not in self.seen, "an id is given twice"
        self.seen[sequence_id] = Observed(request)
        self.num_submitted += 1

    def _cancel(self) -> None:
        # Half of the time the newest, which waits or whose prompt is being read.
        chosen = self.live[-1] if self.rng.random() < 0.5 else self.rng.choice(self.live)
        num_waiting = self.engine.stats.num_waiting
        self.engine.cancel(chosen)
        self.seen[chosen].is_cancelled = True
        is_waiting = self.engine.stats.num_waiting < num_waiting
        self.num_cancelled_waiting += is_waiting
        self.num_cancelled_running += not is_waiting

    def _step(self) -> None:
        before = self.live
        for output in self.engine.step():
            self.seen[output.sequence_id].add(output)
        stats, num_live = self.engine.stats, len(self.live)
        check_stats(stats, self.mix.settings, num_live=num_live)
        num_ended = len(before) - num_live
        at_work = stats.num_running + num_ended
        idle = min(len(before), self.mix.settings.num_rows) - at_work
        assert idle == 0 or self._may_wait(before), "a row is idle while a request waits"
        self.most_running = max(self.most_running, stats.num_running)
        assert self.engine.has_work == bool(self.live)

    def _may_wait(self, sequence_ids: list[int]) -> bool:
        """Whether one may wait for another's prompt, which begins alike, or for memory."""
        heads = [self.seen[i].request.prompt[:8] for i in sequence_ids]
        return len(set(heads)) < len(heads) or self.mix.settings.cache_gigabytes < 1.0

    def _request(self) -> Request:
        rng = self.rng
        settings = GREEDY
        if rng.random() < 0.5:
            settings = SamplingSettings(
                temperature=rng.choice([0.3, 0.8, 1.0, 1.5]),
                top_k=rng.choice([0, 0, 1, 5, 40]),
                top_p=rng.choice([1.0, 1.0, 0.5, 0.9]),
                seed=rng.randrange(1000),
            )
        return Request(
            prompt=self._prompt(),
            settings=settings,
            max_new_tokens=rng.choice([1, 4, 12, 20, 30]),
            max_reply_tokens=rng.choice([UNLIMITED, UNLIMITED, 10]),
            stops=rng.choice([(), (), ("ef",), ("o", "pq"), ("no", "mno"), ("e", "z")]),
            num_logprobs=rng.choice([None, 0, 1, 5, 5]),
            ignores_stop_tokens=rng.random() < 0.1,
            wants_text=rng.random() < 0.8,
        )

    def _prompt(self) -> tuple[int, ...]:
        """New, or one of those there were: as it was, a head of it, or what became of it."""
        others = [s for s in self.seen.values() if not s.is_cancelled]
        if not others or self.rng.random() < 0.4:
            return random_prompt(self.rng, self.rng.randint(1, self.mix.max_prompt))
        other = self.rng.choice(others)
        kind = self.rng.choice(["same", "head", "reply", "reply", "cut reply"])
        if kind == "same":
            return other.request.prompt
        whole = list(other.request.prompt) if kind == "head" else list(other.ids)
        if kind != "reply":
            whole = whole[: self.rng.randint(1, len(whole))]
        rest = random_prompt(self.rng, self.rng.randint(0, 12))
        return tuple([*whole, *rest][: self.mix.max_prompt])


def random_prompt(rng: random.Random, length: int) -> tuple[int, ...]:
    """Any tokens, with some that start a habit."""
    starts = [*TOKENIZER.encode("abcm"), TOKENIZER.special_id("python_start")]
    return tuple(
        rng.choice(starts) if rng.random() < 0.3 else rng.randrange(TOKENIZER.vocab_size)
        for _ in range(length)
    )


class UnrecordedDecode(GraphedDecode):
    """What a CUDA graph records, run as it is, on any device."""

    def __init__(self, model: CachedModel, cache: RowCache) -> None:
        self._model, self._cache = model, cache

    def _recording(self, inputs_3B: torch.Tensor, length: int) -> "_Unrecorded":
        return _Unrecorded(
            inputs_3B.clone(), lambda given: static_decode(self._model, given, self._cache, length)
        )


@dataclass
class _Unrecorded:
    inputs_3B: torch.Tensor
    decode: Callable[[torch.Tensor], torch.Tensor]
    logits_BV: torch.Tensor | None = None

    @property
    def graph(self) -> "_Unrecorded":
        """Stands for the recorded graph, too."""
        return self

    def replay(self) -> None:
        """Do it now."""
        self.logits_BV = self.decode(self.inputs_3B)


def started(mix: Mix) -> MixRun:
    """The run of a mix, before its first step."""
    engine = InferenceEngine(mix.model(), TOKENIZER, mix.settings)
    if mix.is_static:
        runner = engine._runner
        graphs = UnrecordedDecode(runner.model, runner.cache)
        engine._runner = Runner(runner.model, runner.cache, graphs=graphs)
    return MixRun(mix, engine, random.Random(mix.seed + 1))


def check_stats(stats: EngineStats, settings: EngineSettings, *, num_live: int) -> None:
    """Figures that hold between any two steps."""
    assert stats.num_running + stats.num_waiting == num_live
    assert stats.num_rows == settings.num_rows
    assert 0 <= stats.num_running <= settings.num_rows
    assert 0 <= stats.num_cached_tokens <= max(stats.capacity_tokens, settings.max_length)
    assert stats.num_cached_tokens <= stats.num_running * settings.max_length
    assert 0 <= stats.num_prefix_tokens <= stats.num_prompt_tokens


def alone(engine: InferenceEngine, request: Request) -> Observed:
    """What an engine makes of one request that it has for itself."""
    seen = Observed(request)
    wanted = engine.submit(request)
    while engine.has_work:
        for output in engine.step():
            assert output.sequence_id == wanted
            seen.add(output)
    return seen


def _habits(tokenizer: Tokenizer) -> list[tuple[int, int]]:
    return [
        (first, second)
        for steps in HABITS
        for first, second in pairwise(
            tokenizer.encode(step)[0] if len(step) == 1 else tokenizer.special_id(step)
            for step in steps
        )
    ]
