"""The calculator in the middle of a reply: what the model asks, and what it is told."""

from nanochat_core.sandbox.calculator import calculate
from nanochat_core.tokenizer.tokenizer import Tokenizer

MAX_CODE_TOKENS = 256
"""The calculator takes no more characters than this; longer code cannot have a result."""


class ToolCalls:
    """Watches the tokens of one reply; `python_start code python_end` gets its result."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._code: list[int] | None = None
        self._python_start = tokenizer.special_id("python_start")
        self._python_end = tokenizer.special_id("python_end")
        self._output = [tokenizer.special_id(f"output_{edge}") for edge in ("start", "end")]

    def see(self, token: int) -> list[int]:
        """Take in a sampled token; returns the tokens that must follow it (mostly none)."""
        if token == self._python_start:
            self._code = []
        elif token == self._python_end and self._code is not None:
            code, self._code = self._code, None
            return self._answer(code)
        elif self._code is not None:
            self._code.append(token)
        return []

    def _answer(self, code: list[int]) -> list[int]:
        if len(code) > MAX_CODE_TOKENS:
            return []
        result = calculate(self._tokenizer.decode(code))
        if result is None:
            return []
        start, end = self._output
        return [start, *self._tokenizer.encode(result), end]
