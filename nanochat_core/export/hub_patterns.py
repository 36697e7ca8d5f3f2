"""Split patterns for the regular expressions of `tokenizers`, which are another library's.

Ours run in Rust's fancy-regex (by tiktoken), theirs in Oniguruma. What a named pattern uses means
the same in both, save two things of GPT-4's; classes of characters do where both know the same
Unicode (tokenizers 0.23 and tiktoken 0.14: version 16).
"""

from nanochat_core.errors import ConfigError
from nanochat_core.tokenizer.split_patterns import SPLIT_PATTERNS

_OTHERWISE = (
    # Possessive here, but "one to three, once or more" there. An alternative that ends with it
    # gives nothing back in either case.
    (r"\p{N}{1,3}+|", r"\p{N}{1,3}|"),
    # The end of the text here, but of every line there.
    (r"\s++$|", r"\s++\z|"),
)


def hub_pattern(pattern: str) -> str:
    """A pattern that cuts like ours in their library.

    One's own is taken as it is, for the comparison of the export to judge. Raises `ConfigError`
    when their library cannot read it.
    """
    if pattern == SPLIT_PATTERNS["gpt4"]:
        for ours, theirs in _OTHERWISE:
            pattern = pattern.replace(ours, theirs)
    elif pattern not in SPLIT_PATTERNS.values():
        _check(pattern)
    return pattern


def _check(pattern: str) -> None:
    from tokenizers import Regex  # here: only exports need the library

    try:
        Regex(pattern)
    except Exception as error:  # their library raises no other class
        names = ", ".join(SPLIT_PATTERNS)
        raise ConfigError(
            f"split_pattern={pattern!r} is no regular expression of Hugging Face's tokenizers "
            f"({error}), so this model cannot be exported; train a tokenizer with one of {names}"
        ) from error
