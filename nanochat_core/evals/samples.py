"""What a base model writes after fixed prompts, so that people can see what a loss means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.settings import GREEDY, SamplingSettings


@dataclass(frozen=True)
class Sample:
    """One completion and how its tokens were picked."""

    prompt: str
    completion: str
    settings: SamplingSettings

    def record(self) -> dict[str, Any]:
        """One entry of samples.json; a temperature of 0 is greedy, without a seed."""
        values: dict[str, Any] = {"prompt": self.prompt, "completion": self.completion}
        values["temperature"] = self.settings.temperature
        if self.settings.temperature > 0:
            values |= {"top_k": self.settings.top_k, "seed": self.settings.seed}
        return values


def draw_samples(
    engine: InferenceEngine,
    prompts: Sequence[str],
    settings: SamplingSettings,
    *,
    max_new_tokens: int,
) -> list[Sample]:
    """Every prompt completed greedily, then once more as `settings` say, with seeds in turn.

    At temperature 0 the second half is left out, with `max_new_tokens` 0 everything.
    """
    if max_new_tokens == 0:
        return []
    samples = _complete(engine, prompts, GREEDY, max_new_tokens)
    if settings.temperature > 0:
        samples += _complete(engine, prompts, settings, max_new_tokens)
    return samples


def _complete(
    engine: InferenceEngine, prompts: Sequence[str], settings: SamplingSettings, max_new_tokens: int
) -> list[Sample]:
    tokenizer = engine.tokenizer
    ids = [[tokenizer.bos_id, *tokenizer.encode(prompt)] for prompt in prompts]
    replies = engine.generate_batch(ids, settings, max_new_tokens=max_new_tokens)
    samples = []
    for i, (prompt, reply) in enumerate(zip(prompts, replies, strict=True)):
        own = SamplingSettings(
            settings.temperature, settings.top_k, settings.top_p, settings.seed + i
        )
        samples.append(Sample(prompt, tokenizer.decode(reply), own))
    return samples
