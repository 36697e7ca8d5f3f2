"""How a chat model answers: by the likeliest letter, or in words.

Shapes: B problems, T positions, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from nanochat_core.benchmarks.base import (
    Benchmark,
    CategoricalBenchmark,
    GenerativeBenchmark,
    prompt,
)
from nanochat_core.errors import ConfigError, DataError, TrainingError
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.requests import Request
from nanochat_core.inference.settings import GREEDY
from nanochat_core.tokenizer.chat_format import MAX_TOKENS, render_prompt, visible_text
from nanochat_core.tokenizer.tokenizer import Tokenizer

NUM_JUDGES = 2
"""Replies that are judged at once, beside the engine. More would take from each other the seconds
that a program has."""

OnDone = Callable[[int], None]
"""Told how many problems are settled; may be told the same number often, and may raise."""


@dataclass(frozen=True)
class Answer:
    """What the model answered to a problem, and its score from 0 to 1."""

    index: int
    reply: str
    score: float
    is_cropped: bool
    """Whether the end of the question was cut off, since it is longer than the model reads."""


def answer_problems(
    engine: InferenceEngine,
    benchmark: Benchmark,
    indices: Sequence[int],
    *,
    batch_tokens: int,
    max_new_tokens: int,
    on_done: OnDone,
) -> list[Answer]:
    """Put problems to a model, each in a conversation of its own; in any order.

    `batch_tokens` bounds the tokens of a batch of prompts, save that one always fits; how many
    replies are written at once is a setting of the engine.
    """
    if isinstance(benchmark, CategoricalBenchmark):
        return pick_letters(engine, benchmark, indices, batch_tokens=batch_tokens, on_done=on_done)
    if isinstance(benchmark, GenerativeBenchmark):
        return write_replies(
            engine,
            benchmark,
            indices,
            max_new_tokens=max_new_tokens,
            on_done=on_done,
        )
    raise ConfigError(f"the benchmark {benchmark.name} has neither letters nor scores for replies")


def pick_letters(
    engine: InferenceEngine,
    benchmark: CategoricalBenchmark,
    indices: Sequence[int],
    *,
    batch_tokens: int,
    on_done: OnDone = lambda _: None,
) -> list[Answer]:
    """The letter of each problem with the largest logit right after `assistant_start`."""
    tokenizer = engine.tokenizer
    letters = {index: _letter_tokens(benchmark, index, tokenizer) for index in indices}
    answers: list[Answer] = []
    for batch in _batches(sorted_prompts(engine, benchmark, indices), batch_tokens):
        logits_BV = engine.last_logits([tokens for _, tokens, _ in batch])
        if logits_BV.isnan().any():
            raise TrainingError(
                f"the model's logits are NaN on {benchmark.name}; its weights are bad"
            )
        for (index, _, is_cropped), logits_V in zip(batch, logits_BV, strict=True):
            tokens = letters[index]
            best = int(logits_V[list(tokens.values())].argmax())  # the first one on ties
            letter = list(tokens)[best]
            score = float(letter == benchmark.answer(index))
            answers.append(Answer(index, letter, score, is_cropped))
        on_done(len(answers))
    return answers


def write_replies(
    engine: InferenceEngine,
    benchmark: GenerativeBenchmark,
    indices: Sequence[int],
    *,
    max_new_tokens: int,
    on_done: OnDone = lambda _: None,
) -> list[Answer]:
    """Greedy replies, tools included, and what the benchmark gives for them.

    A reply is judged when it ends, by threads, while the engine goes on with the others: judging
    code means waiting for its processes.
    """
    asked = sorted_prompts(engine, benchmark, indices)
    requests = [reply_request(tokens, max_new_tokens) for _, tokens, _ in asked]
    judged: list[Future[Answer]] = []
    with ThreadPoolExecutor(NUM_JUDGES) as judges:

        def tell() -> None:
            on_done(sum(answer.done() for answer in judged))

        try:
            # Long replies take minutes: what `on_done` raises for a stop ends them in between.
            for number, reply in engine.replies(requests, on_step=tell):
                index, _, is_cropped = asked[number]
                text = visible_text(engine.tokenizer, reply.tokens)
                judged.append(judges.submit(_judge, benchmark, index, text, is_cropped))
            for answer in judged:
                answer.result()
                tell()
        finally:
            judges.shutdown(wait=False, cancel_futures=True)
    return [answer.result() for answer in judged]


def reply_request(prompt_tokens: Sequence[int], max_new_tokens: int) -> Request:
    """What the engine is asked for a reply that is judged."""
    return Request(tuple(prompt_tokens), GREEDY, max_new_tokens, wants_text=False)


def _judge(benchmark: GenerativeBenchmark, index: int, text: str, is_cropped: bool) -> Answer:
    return Answer(index, text, benchmark.score(index, text), is_cropped)


def _letter_tokens(
    benchmark: CategoricalBenchmark, index: int, tokenizer: Tokenizer
) -> dict[str, int]:
    """The token of each letter that a problem offers."""
    tokens = {}
    for letter in benchmark.letters(index):
        ids = tokenizer.encode(letter)
        if len(ids) != 1:
            raise DataError(
                f"problem {index} of {benchmark.name} offers the letter {letter!r}, which is "
                f"{len(ids)} tokens of this tokenizer; expected letters of one token each: give "
                "the choices other letters, or leave the benchmark out"
            )
        tokens[letter] = ids[0]
    return tokens


Prompt = tuple[int, list[int], bool]
"""Index of the problem, tokens, whether the end was cut off."""


def sorted_prompts(
    engine: InferenceEngine, benchmark: Benchmark, indices: Sequence[int]
) -> list[Prompt]:
    """Prompts of like length together, the longest first, so that memory peaks at once."""
    prompts = [_prompt(engine, benchmark, index) for index in indices]
    return sorted(prompts, key=lambda item: -len(item[1]))


def _batches(prompts: Sequence[Prompt], batch_tokens: int) -> Iterator[Sequence[Prompt]]:
    """Neighbours as many as fit, padding counted; at least one."""
    first = 0
    while first < len(prompts):
        count = max(1, batch_tokens // len(prompts[first][1]))
        yield prompts[first : first + count]
        first += count


def _prompt(engine: InferenceEngine, benchmark: Benchmark, index: int) -> Prompt:
    # Half of what a small model can read stays free for the reply.
    limit = min(MAX_TOKENS, engine.model.max_positions // 2)
    asked = prompt(benchmark.conversation(index))
    tokens = render_prompt(engine.tokenizer, asked, max_tokens=limit)
    # A whole question ends with user_end, and then assistant_start.
    is_cropped = tokens[-2] != engine.tokenizer.special_id("user_end")
    return index, tokens, is_cropped
