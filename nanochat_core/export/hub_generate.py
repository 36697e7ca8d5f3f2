"""Replies as the model's own engine writes them: a calculator answers what the model asks it.

transformers loads this file of an export, `custom_generate/generate.py`, with the model, and calls
`generate` instead of its own, which does the work. The line that imports the calculator is
replaced by the calculator when the file is written: an export needs nothing of nanochat.
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.utils.hub import cached_file

from nanochat_core.sandbox.calculator import calculate

MAX_CODE_TOKENS = 256
"""The calculator takes no more characters than this."""


def generate(
    inputs: Any = None,
    generation_config: Any = None,
    *,
    model: Any,
    calculator: bool = True,
    **options: Any,
) -> Any:
    """As `generate` of transformers; `calculator=False` leaves the model alone.

    So does a configuration without an end token: replies that never end are measurements.
    """
    processors = LogitsProcessorList(options.pop("logits_processor", None) or [])
    settings = generation_config or model.generation_config
    has_end = options.get("eos_token_id", getattr(settings, "eos_token_id", None)) is not None
    tokenizer = _tokenizer_of(model) if calculator and has_end else None
    if tokenizer is not None:
        processors.append(CalculatorAnswers(tokenizer))
    return type(model).generate(
        model, inputs, generation_config, logits_processor=processors, **options
    )


class CalculatorAnswers(LogitsProcessor):
    """Lets the result follow `python_start code python_end`, where the code has a result."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._start, self._end, self._before, self._after = (
            _special_id(tokenizer, f"<|{name}|>")
            for name in ("python_start", "python_end", "output_start", "output_end")
        )
        self._num_prompt = -1

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Leave one token to rows that wait for the rest of a result."""
        if self._num_prompt < 0:
            self._num_prompt = input_ids.shape[1]
        new = input_ids[:, self._num_prompt :]
        asking = new.eq(self._end).any(dim=1).nonzero().flatten().tolist()
        for row in asking:
            token = self.forced(new[row].tolist())
            if token is not None:
                scores[row] = -torch.inf
                scores[row, token] = 0.0
        return scores

    def forced(self, reply: Sequence[int]) -> int | None:
        """The token that must follow a reply; None where the model is free."""
        code: list[int] | None = None
        place = 0
        while place < len(reply):
            token = reply[place]
            place += 1
            if token == self._start:
                code = []
            elif token == self._end and code is not None:
                answer, code = self._answer(code), None
                if len(reply) < place + len(answer):
                    return answer[len(reply) - place]
                # What a tool has written asks nothing.
                place += len(answer)
            elif code is not None:
                code.append(token)
        return None

    def _answer(self, code: list[int]) -> list[int]:
        if len(code) > MAX_CODE_TOKENS:
            return []
        result = calculate(self._tokenizer.decode(code, skip_special_tokens=False))
        if result is None:
            return []
        ids = self._tokenizer.encode(result, add_special_tokens=False).ids
        return [self._before, *ids, self._after]


def _special_id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    if found is None:
        raise ValueError(f"the tokenizer beside the model has no {name}; export the model again")
    return found


def _tokenizer_of(model: Any) -> Tokenizer | None:
    """That of the folder or repository that the model was loaded from; None where there is none."""
    revision = getattr(model.config, "_commit_hash", None)
    return _read_tokenizer(str(model.config._name_or_path), revision)


@functools.lru_cache(maxsize=8)
def _read_tokenizer(name: str, revision: str | None) -> Tokenizer | None:
    try:
        path = cached_file(name, "tokenizer.json", revision=revision)
    except OSError:
        return None
    return None if path is None else Tokenizer.from_file(path)
