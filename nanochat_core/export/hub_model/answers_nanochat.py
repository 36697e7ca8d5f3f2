"""Answers to what a model asks the calculator, in the replies that `generate` writes."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import LogitsProcessor
from transformers.utils import logging
from transformers.utils.hub import cached_file

MAX_CODE_TOKENS = 256
"""The calculator takes no more characters than this."""
TOKENIZER_FILE = "tokenizer.json"

logger = logging.get_logger(__name__)


class CalculatorAnswers(LogitsProcessor):
    """Lets the result follow `python_start code python_end`, where the code has a result."""

    def __init__(self, tokenizer: Tokenizer, calculate: Callable[[str], str | None]) -> None:
        self._tokenizer, self._calculate = tokenizer, calculate
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
        result = self._calculate(self._tokenizer.decode(code, skip_special_tokens=False))
        if result is None:
            return []
        ids = self._tokenizer.encode(result, add_special_tokens=False).ids
        return [self._before, *ids, self._after]


def _special_id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.token_to_id(name)
    if found is None:
        raise ValueError(f"the tokenizer beside the model has no {name}; export the model again")
    return found


def has_end(options: Mapping[str, Any], *settings: Any) -> bool:
    """Whether replies end, as transformers sees it: by an option, else by the first that says."""
    if "eos_token_id" in options:
        return options["eos_token_id"] is not None
    return any(getattr(one, "eos_token_id", None) is not None for one in settings)


def place_of(config: Any) -> str:
    """Where a model is loaded from: an absolute path, a name on the Hub, or nothing.

    A path is looked up while the model is loaded: later, elsewhere, it would be another folder's,
    or the name of somebody's repository.
    """
    name = str(config._name_or_path or "")
    return str(Path(name).absolute()) if name and Path(name).is_dir() else name


def tokenizer_in(place: str, revision: str | None) -> Tokenizer | None:
    """The tokenizer of a folder or repository; None, with a warning, where there is none."""
    if not place:
        return None
    try:
        return _read_tokenizer(place, revision)
    except OSError:
        logger.warning_once(
            f"no {TOKENIZER_FILE} in {place}: the calculator answers nothing; save the tokenizer "
            "beside the model, or say generate(..., calculator=False)"
        )
        return None


# A file that is not there raises, and is looked for again.
@functools.lru_cache(maxsize=8)
def _read_tokenizer(place: str, revision: str | None) -> Tokenizer:
    path = Path(place, TOKENIZER_FILE)
    if not path.is_absolute():
        path = Path(str(cached_file(place, TOKENIZER_FILE, revision=revision)))
    return Tokenizer.from_str(path.read_text(encoding="utf-8"))
