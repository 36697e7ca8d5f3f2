"""When a reply counts as right: it states the value, as words of their own."""

import re

_SCALE = r"(?:thousand|million|billion|trillion)"


def normalise(text: str) -> str:
    """Lower case words and numbers with single spaces; for comparing questions."""
    return " ".join(re.findall(r"[^\W_]+(?:[.'][^\W_]+)*", text.casefold()))


def states(reply: str, value: str) -> bool:
    """Whether a reply holds a value as whole words, in any letter case.

    A number does not count inside a longer one: "2" is not in "12", "-2", "1.2", "2.5" or
    "2 million".
    """
    before, after = r"(?<!\w)", r"(?!\w)"
    if value[:1].isdigit():
        before = r"(?<![\w-])(?<!\d[.,])"
    if value[-1:].isdigit():
        after = rf"(?!\w)(?![.,]\d)(?!\s*{_SCALE}\b)"
    pattern = before + re.escape(value) + after
    return re.search(pattern, reply, re.IGNORECASE) is not None


def states_any(reply: str, values: tuple[str, ...]) -> bool:
    """Whether a reply holds at least one of several equally right values."""
    return any(states(reply, value) for value in values)
