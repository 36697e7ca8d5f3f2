"""Strings that find out whether two tokenizers cut alike: every script, and what is no text."""

import random
from collections.abc import Callable, Sequence
from typing import TypeVar

from nanochat_core.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer

Choice = TypeVar("Choice")

SURROGATES = range(0xD800, 0xE000)
NUM_CODE_POINTS = 0x110000 - len(SURROGATES)
"""That a text can have, assigned or not."""
SLICE = 800
"""Of them in one string, at most; ten thousand strings then hold each code point."""

SCRIPTS = (
    *((0x20, 0x7E), (0xA0, 0x24F), (0x250, 0x2FF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x52F)),
    *((0x531, 0x58A), (0x591, 0x5F4), (0x600, 0x6FF), (0x700, 0x74F), (0x780, 0x7B1)),
    *((0x900, 0x97F), (0x980, 0x9FE), (0xA01, 0xA76), (0xA81, 0xAFF), (0xB82, 0xBFA)),
    *((0xC00, 0xC7F), (0xD00, 0xD7F), (0xD81, 0xDF4), (0xE01, 0xE5B), (0xE81, 0xEDF)),
    *((0xF00, 0xFDA), (0x1000, 0x109F), (0x10A0, 0x10FF), (0x1100, 0x11FF), (0x1200, 0x137C)),
    *((0x13A0, 0x13FD), (0x1400, 0x167F), (0x16A0, 0x16F8), (0x1780, 0x17F9), (0x1800, 0x18AA)),
    *((0x1E00, 0x1EFF), (0x1F00, 0x1FFE), (0x2000, 0x206F), (0x2070, 0x20BF), (0x2100, 0x218B)),
    *((0x2190, 0x23FF), (0x2460, 0x24FF), (0x2C00, 0x2C5F), (0x3000, 0x30FF), (0x3131, 0x318E)),
    *((0x4E00, 0x9FFF), (0xA000, 0xA48C), (0xAC00, 0xD7A3), (0xFB00, 0xFDFF), (0xFE00, 0xFFFD)),
    *((0x10000, 0x100FA), (0x10330, 0x1034A), (0x12000, 0x12399), (0x13000, 0x1342F)),
    *((0x16A40, 0x16A69), (0x1D400, 0x1D7FF), (0x1E900, 0x1E95F), (0x20000, 0x2A6DF)),
)
EMOJI = ((0x1F300, 0x1F64F), (0x1F680, 0x1F6FC), (0x1F900, 0x1FAFF), (0x2600, 0x27BF))
JOINERS = ("\u200d", "\ufe0f", "\u20e3", "\U0001f3fd", "\U0001f1e9\U0001f1ea", "")
SPACES = " \t\n\r\x0b\x0c\x1c\x85\xa0\u1680\u2003\u2009\u2028\u2029\u202f\u205f\u3000"
CONTROLS = "".join(map(chr, (*range(32), *range(127, 160)))) + (
    "\u00ad\u180e\u200b\u200c\u200d\u200e\u200f\u202a\u202e\u2060\u2066\u2069\ufeff\ufff9\ufffd"
    "\ufdd0\uffff\U0001ffff\U0010ffff\ue000\U000f0000\U000e0001\U000e0041"
)
NAMES = ("self", "x_1", "getHTTPResponse", "MAX", "naïve", "变量", "__init__", "λ", "i")
SYMBOLS = ("=", "==", "(", ")", "):", "{", "}", "->", "::", "//", "#", '"', "'", "\\n", "<|", "|>")
INDENTS = ("", "  ", "    ", "\t", "\t\t", " \t ")
LINE_ENDS = ("\n", "\r\n", "\r", "\n\n", " \n", "\n\n\n  ")
ENDINGS = (
    "s",
    "S",
    "t",
    "ll",
    "LL",
    "lL",
    "ve",
    "VE",
    "re",
    "Re",
    "d",
    "m",
    "\u017f",
    "\u017fT",
    "K",
    "",
)
DIGITS = (
    "0123456789",
    "٠١٢٣٤٥٦٧٨٩",
    "०१२३४५६७८९",
    "²³¹",
    "ⅣⅫ",
    "①②③",
    "\U0001d7d8\U0001d7d9\U0001d7da",
    "½¾",
)
LONGEST_WORD = 3_000


def make_strings(tokenizer: Tokenizer, count: int, seed: int = 0) -> list[str]:
    """`count` strings; equal arguments give equal strings."""
    maker = StringMaker(tokenizer, random.Random(seed))
    return ["", *(maker.string(number) for number in range(count - 1))][:count]


class StringMaker:
    """Makes strings of one kind after the other."""

    def __init__(self, tokenizer: Tokenizer, rng: random.Random) -> None:
        self._rng = rng
        self._texts = [text for text in tokenizer.texts if text]
        self._sweep = 0
        self._kinds: tuple[Callable[[], str], ...] = (
            self.every_code_point,
            self.tokens,
            self.script,
            self.code,
            self.every_code_point,
            self.emoji,
            self.controls,
            self.white_space,
            self.specials,
            self.long_word,
            self.numbers,
            self.broken,
            self.mixture,
        )

    def string(self, number: int) -> str:
        """The kinds take turns."""
        return self._kinds[number % len(self._kinds)]()

    def every_code_point(self) -> str:
        """The next ones in order, some of them beside letters, digits, quotes or spaces."""
        numbers = range(self._sweep, min(self._sweep + SLICE, NUM_CODE_POINTS))
        self._sweep = numbers.stop % NUM_CODE_POINTS
        beside = self._some(("", " ", "a", "1", "'", ".", "\n", "字"))
        gap = len(SURROGATES)
        return "".join(chr(n if n < SURROGATES.start else n + gap) + beside for n in numbers)

    def tokens(self) -> str:
        """Tokens in an order in which no text has them."""
        return "".join(self._rng.choices(self._texts, k=self._rng.randint(1, 60)))

    def script(self) -> str:
        """Words of one script."""
        first, last = self._some(SCRIPTS)
        return self._some((" ", "", ", ", "\u200c", "-")).join(
            self._word(first, last, self._rng.randint(1, 12))
            for _ in range(self._rng.randint(1, 12))
        )

    def code(self) -> str:
        """Lines with indents, names and symbols."""
        line_end = self._some(LINE_ENDS)
        lines = []
        for _ in range(self._rng.randint(1, 6)):
            words = (self._some((*NAMES, *SYMBOLS)) for _ in range(self._rng.randint(0, 9)))
            lines.append(self._some(INDENTS) + self._some(("", " ")).join(words))
        return line_end.join(lines) + self._some(("", line_end))

    def emoji(self) -> str:
        """Pictures, joined and coloured, flags and keys, and words between them."""
        parts = (
            self._word(*self._some(EMOJI), 1)
            + self._some(JOINERS)
            + self._some(("", " ", "ok", "1"))
            for _ in range(self._rng.randint(1, 12))
        )
        return "".join(parts)

    def controls(self) -> str:
        """Characters that are not seen, and some that are."""
        return "".join(self._rng.choices(CONTROLS + "aB1. ", k=self._rng.randint(1, 40)))

    def white_space(self) -> str:
        """Runs of one or many kinds of white space, with or without a word after them."""
        parts = []
        for _ in range(self._rng.randint(1, 5)):
            kinds = self._some((SPACES, " ", "\n", " \n", "\r\n", "\t "))
            parts += self._rng.choices(kinds, k=self._rng.choice((1, 2, 3, 9, 40, 300)))
            parts.append(self._some(("", "word", "7", "...", "'s", "é")))
        return "".join(parts)

    def specials(self) -> str:
        """Text that looks like special tokens, whole or broken."""
        parts = []
        for _ in range(self._rng.randint(1, 6)):
            name = self._some(SPECIAL_TOKENS)
            cut = self._rng.choice((len(name), len(name), self._rng.randrange(1, len(name))))
            parts += [name[:cut], self._some(("", " ", "text", "\n", "<|", "|>"))]
        return "".join(parts)

    def long_word(self) -> str:
        """One character or a few, very often, or letters without an end."""
        length = self._rng.choice((30, 100, 300, 1_000, LONGEST_WORD))
        if self._rng.random() < 0.5:
            first, last = self._some(SCRIPTS)
            few = self._word(first, last, self._rng.randint(1, 4))
            return (few * length)[:length]
        return "".join(
            self._rng.choices(self._some(("ACGT", "abcdefghij", "aé漢", "-=")), k=length)
        )

    def numbers(self) -> str:
        """Numbers in many scripts, dates, and English endings in either case."""
        parts = []
        for _ in range(self._rng.randint(1, 8)):
            digits = self._rng.choices(self._some(DIGITS), k=self._rng.randint(1, 9))
            ending = self._some(("'", "\u2019", "''")) + self._some(ENDINGS)
            parts.append(self._some(("".join(digits), self._some(NAMES) + ending, ending)))
        return self._some(("", " ", ".", "/", "-", ",", "e")).join(parts)

    def broken(self) -> str:
        """Bytes that were read in a wrong encoding."""
        data = self._rng.randbytes(self._rng.randint(1, 60))
        words = self._word(*self._some(SCRIPTS), 12).encode("utf-8", "replace")
        return (data + words[1:]).decode(self._some(("utf-8", "latin-1", "utf-16-le")), "replace")

    def mixture(self) -> str:
        """Ends and beginnings of the others, one after the other."""
        others = self._kinds[1:-1]
        texts = (self._some(others)()[-20:] for _ in range(self._rng.randint(2, 6)))
        return "".join(texts)

    def _word(self, first: int, last: int, length: int) -> str:
        return "".join(chr(self._rng.randint(first, last)) for _ in range(length))

    def _some(self, choices: Sequence[Choice]) -> Choice:
        return self._rng.choice(choices)
