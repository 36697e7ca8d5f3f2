"""Regular expressions that cut text into words, inside which merges are learnt, by name.

Every pattern has to cover all text: what it leaves out, tiktoken would drop without a word.
"""

import re

from nanochat_core.errors import ConfigError, UnknownNameError

NANOCHAT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
"""Digits in groups of at most two: measured better than one or three at 32,768 (RECIPE 3)."""

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
"""As published with GPT-2 (openai/gpt-2, encoder.py)."""

_GPT4 = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+|"
    r" ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
"""That of cl100k_base (tiktoken 0.14, openai_public.py)."""

_ENGLISH_ENDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_SMALL, _LARGE = r"\p{Ll}\p{Lm}\p{Lo}\p{M}", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_GPT4O = "|".join(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_LARGE}]*[{_SMALL}]+{_ENGLISH_ENDS}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_LARGE}]+[{_SMALL}]*{_ENGLISH_ENDS}",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
"""That of o200k_base (tiktoken 0.14, openai_public.py): words also end where small letters do."""

# Our own. Vowel signs and accents that are characters of their own are marks (\p{M}), no letters:
# the patterns above but GPT-4o's end a Hindi, Thai or pointed Hebrew word at each of them. On the
# translations of Django 5.2 (24 kB a language) a vocabulary of 900 has 5.9 instead of 4.6 bytes per
# token of Hindi and 6.0 instead of 4.9 of Thai, and learns Tamil and Burmese at all; of scripts
# without marks as many. The two joiners stand inside words of Persian and of Indic scripts.
# All but the white space at the end is one group without look-around: see `fast_spelling`.
_ENGLISH = r"'(?i:[sdmt]|ll|ve|re)"
_OTHERS = r"\p{N}{1,2}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]"
_SPACE = r"\s+(?!\S)|\s+"
_BEFORE = r"[^\r\n\p{L}\p{M}\p{N}]?"
_MARKED_WORD = rf"{_BEFORE}[\p{{L}}\p{{M}}][\p{{L}}\p{{M}}\u200C\u200D]*"
_MARKS = f"(?:{_ENGLISH}|{_MARKED_WORD}|{_OTHERS})|{_SPACE}"

SPLIT_PATTERNS = {
    "nanochat": NANOCHAT,
    "gpt2": _GPT2,
    "gpt4": _GPT4,
    "gpt4o": _GPT4O,
    "marks": _MARKS,
}
"""`marks` suits scripts whose vowels are combining marks, and those without spaces."""

_FAST_NANOCHAT = (
    r"(?:'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,2}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n])|\s+(?!\S)|\s+"
)

_A_NAME = re.compile(r"[A-Za-z][\w-]*")
_PROBE = (
    "It's 12,345 o'CLOCK!\r\n\r\n\tx = {'a': [1.5e-3]}  \n \r \u00a0\u2003end "
    "e\u0301tude Stra\u00dfe \u0130stanbul \u01c5 \u02b0 \u00b2\u2164\u0663 "
    "\u0939\u093f\u0928\u094d\u200d\u0926\u0940 \u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645 "
    "\u05e9\u05c1\u05b8 \u4e2d\u6587\u3002\u65e5\u672c\u8a9e\u306e\u30c6\u30b9\u30c8\u30fc "
    "\u0e44\u0e17\u0e22\u0e01\u0e33 \u1780\u17d2\u1798 \ud55c\uad6d\uc5b4 "
    "\U0001f469\u200d\U0001f680\ufe0f \U0001d54f \u0301 \u200d \x00\x1f\x7f\x85\u2028\ufffd"
    "\U0010ffff\u20ac\u2211\u00ac\u2014\u00ad\ue000\u0378'\"  "
)
"""Characters of every general category, alone and beside others."""


def split_pattern_of(text: str) -> str:
    """The pattern of a name, or a checked pattern of the user's own.

    Raises `UnknownNameError` for what can only be meant as a name, and `ConfigError` for what is
    no regular expression or leaves out some text.
    """
    if text in SPLIT_PATTERNS:
        return SPLIT_PATTERNS[text]
    if text not in SPLIT_PATTERNS.values():
        if _A_NAME.fullmatch(text):
            names = ", ".join(SPLIT_PATTERNS)
            raise UnknownNameError(
                f"there is no split pattern {text!r}; there is {names}, or give a regular "
                "expression"
            )
        _check(text)
    return text


def fast_spelling(pattern: str) -> str:
    """Another pattern that cuts every text in the same places, sooner.

    tiktoken's library hands what has no look-around and no possessive quantifier to a machine that
    never goes back, and works through the rest itself, alternative by alternative. Neither of the
    possessive ones of our default can give back anything that the rest could take: the first is
    for no letter and letters follow, after the second everything is optional. Without them, and
    with a group around all that has no look-around, 18 MB/s became 29 (one core, docs corpus).
    """
    return _FAST_NANOCHAT if pattern == NANOCHAT else pattern


def pattern_name(pattern: str) -> str:
    """The name of a pattern; that of one's own is `own`."""
    names = {pattern: name for name, pattern in SPLIT_PATTERNS.items()}
    return names.get(pattern, "own")


def pattern_error(pattern: str, error: ValueError) -> ConfigError:
    """What people are told of a pattern that is no regular expression."""
    names = ", ".join(SPLIT_PATTERNS)
    return ConfigError(
        f"split_pattern={pattern!r} cannot be used ({error}); expected a regular expression, "
        f"as the recipe's default is, or one of {names}"
    )


def _check(pattern: str) -> None:
    """Refuse what does not compile, and what does not cover the probe text."""
    import tiktoken  # here: every command reads recipes, few have a pattern of their own

    try:
        encoding = tiktoken.Encoding(
            "probe",
            pat_str=pattern,
            mergeable_ranks={bytes([i]): i for i in range(256)},
            special_tokens={},
        )
    except ValueError as error:
        raise pattern_error(pattern, error) from error
    kept = encoding.decode_bytes(encoding.encode_ordinary(_PROBE))
    whole = _PROBE.encode()
    if kept == whole:
        return
    same = next((i for i, (a, b) in enumerate(zip(kept, whole, strict=False)) if a != b), len(kept))
    place = len(whole[:same].decode(errors="ignore"))
    raise ConfigError(
        f"split_pattern={pattern!r} leaves out text, which would be lost without a word: of "
        f"{_PROBE!r} first {_PROBE[place]!r}; let a last alternative take the rest, as in "
        r"...|\s+|."
    )
