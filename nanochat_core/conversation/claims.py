"""What an assistant says about itself, held against the sheet of its facts.

Clauses are judged by words: a name that it gives itself, a number beside one of its sizes, a famous
model or maker that it claims to be or to come from. What is in doubt counts as wrong, since another
conversation costs little and a wrong one is learned.
"""

import re
from collections.abc import Iterator

from nanochat_core.conversation.made_identity import FactSheet
from nanochat_core.conversation.types import Conversation

OTHER_NAMES = (
    *("chatgpt", "gpt", "openai", "claude", "anthropic", "gemini", "bard", "google", "deepmind"),
    *("llama", "meta ai", "mistral", "mixtral", "qwen", "alibaba", "deepseek", "copilot"),
    *("microsoft", "grok", "xai", "siri", "alexa", "kimi", "moonshot", "zhipu", "chatglm", "phi"),
)
"""Models and makers that language models take themselves for."""

_QUOTES = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"'}
_CLAUSE_END = re.compile(r"(?<!\d)[.,]|[.,](?!\d)|[!?;:\n()]|\bbut\b")
"""A full stop or comma between digits belongs to a number."""
_DENIAL = re.compile(
    r"\b(?:not|no|nor|never|neither|unlike|instead|rather|different|than|confus\w+|mistak\w+)\b"
    r"|n't\b",
    re.IGNORECASE,
)
_OF_MYSELF = re.compile(r"\b(?:i|my|me|mine|myself|we|our)\b", re.IGNORECASE)
_OF_OTHERS = re.compile(
    r"\b(?:others?|large|larger|big|bigger|most|some|many|modern|typical|usually|famous)\b",
    re.IGNORECASE,
)
_OWN_NAME = re.compile(
    r"\b(?:my name(?: is|'s)|i(?: am|'m) (?:called|named|known as)|i go by|call me|i answer to)"
    r"\s+(?:the name\s+)?[\"'*]*(?P<name>[^\s\"'.,!?;:*()]+)",
    re.IGNORECASE,
)
_NO_NAMES = frozenset({"not", "what", "whatever", "anything", "just", "that"})

_SMALL = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen"),
    *("nineteen", "twenty"),
)
_WORDS = {word: value for value, word in enumerate(_SMALL)} | {"single": 1, "dozen": 12}
_WORDS |= {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60, "hundred": 100}
_SCALES = {"thousand": 10**3, "k": 10**3, "million": 10**6, "m": 10**6, "billion": 10**9}
_SCALES |= {"b": 10**9, "trillion": 10**12}


def _any_of(words: dict[str, int]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


_NUMBER = (
    rf"(?P<number>\b\d+(?:,\d{{3}})*(?:\.\d+)?|\b(?:{_any_of(_WORDS)})\b)"
    rf"(?:[\s-]*(?P<scale>{_any_of(_SCALES)})\b)?"
)
_FILLERS = r"(?:[\s-]+(?:of|my|trainable|trained|transformer|hidden|different|whole|model)\b)*"
_LINK = r"(?:\s+(?:is|was|of|are|has|at|about|exactly|only|just|roughly|around|equal|to))+\s+"
_SIZES: dict[tuple[str, ...], tuple[str, str]] = {
    ("depth",): (
        r"(?:layers?|blocks?)\b",
        r"\b(?:depth|layer count|number of (?:my )?(?:layers|blocks))",
    ),
    ("num_parameters",): (
        r"(?:parameters?|params?|weights?)\b",
        r"\b(?:parameter count|number of (?:my )?(?:parameters|weights))",
    ),
    ("n_head",): (
        r"(?:attention[\s-]+)?heads?\b",
        r"\bnumber of (?:my )?(?:attention )?heads",
    ),
    ("n_embd",): (
        r"(?:channels?|dimensions?|dimensional|wide)\b",
        r"\b(?:width|embedding size|hidden size|model dimension)",
    ),
    ("vocab_size", "sequence_len"): (
        r"tokens?\b",
        r"\b(?:vocabulary|vocabulary size|context|context length)",
    ),
}
"""Of the sizes of a model: what stands after its number, and what before."""
_CLAIMS = {
    numbers: (
        re.compile(rf"{_NUMBER}{_FILLERS}[\s-]+{after}", re.IGNORECASE),
        re.compile(rf"{before}{_LINK}{_NUMBER}", re.IGNORECASE),
    )
    for numbers, (after, before) in _SIZES.items()
}


def contradiction(sheet: FactSheet, conversation: Conversation) -> str:
    """The first thing that the assistant says about itself and that the sheet does not; '': none.

    It begins with `name:`, `number:` or `other model:`.
    """
    for message in conversation.turns[1::2]:
        for clause in _clauses(message.text.translate(_QUOTES)):
            for judge in (_wrong_name, _wrong_number, _other_model):
                if found := judge(sheet, clause):
                    return found
    return ""


def _clauses(text: str) -> Iterator[str]:
    return (clause.strip() for clause in _CLAUSE_END.split(text) if clause.strip())


def _words_of(text: str) -> list[str]:
    return re.findall(r"[^\W_]+", text.casefold())


def _wrong_name(sheet: FactSheet, clause: str) -> str:
    right = _NO_NAMES | set(_words_of(sheet.name))
    for match in _OWN_NAME.finditer(clause):
        first = _words_of(match["name"])[:1]
        if first and first[0] not in right:
            return f"name: {clause!r}, where the name is {sheet.name!r}"
    return ""


def _other_model(sheet: FactSheet, clause: str) -> str:
    if _DENIAL.search(clause) or not _OF_MYSELF.search(clause):
        return ""
    known = _known_text(sheet)
    for name in OTHER_NAMES:
        # A digit may follow at once, as in GPT4.
        word = re.compile(rf"\b{re.escape(name)}(?![^\W\d_])", re.IGNORECASE)
        if word.search(clause) and not word.search(known):
            return f"other model: {clause!r}"
    return ""


def _known_text(sheet: FactSheet) -> str:
    answers = (*sheet.known_answers().values(), *(fact.answer for fact in sheet.more))
    return " ".join((sheet.name, sheet.data, sheet.background, *answers))


def _wrong_number(sheet: FactSheet, clause: str) -> str:
    if _OF_OTHERS.search(clause) and not _OF_MYSELF.search(clause):
        return ""
    known = _known_text(sheet).casefold()
    for numbers, claims in _CLAIMS.items():
        right = [getattr(sheet, number) for number in numbers]
        for match in (match for claim in claims for match in claim.finditer(clause)):
            is_told = re.search(rf"(?<![\w.,]){re.escape(match.group(0).casefold())}", known)
            if not is_told and not any(value and _agrees(match, value) for value in right):
                expected = " or ".join(str(value) for value in right if value) or "not known"
                return f"number: {clause!r}, where {' or '.join(numbers)} is {expected}"
    return ""


def _agrees(claim: re.Match[str], value: int) -> bool:
    """Whether a number, as exact as it is said, is this one: 1.2 million is 1,179,690."""
    said, scale = claim["number"].casefold(), _SCALES.get((claim["scale"] or "").casefold(), 1)
    if said in _WORDS:
        return round(value / scale) == _WORDS[said]
    digits = said.replace(",", "")
    if scale == 1:
        return digits.isdigit() and _rounded_alike(int(digits), value)
    decimals = len(digits.partition(".")[2])
    return f"{value / scale:.{decimals}f}" == f"{float(digits):.{decimals}f}"


def _rounded_alike(said: int, value: int) -> bool:
    # Small numbers are counted; large ones may be rounded to the digits before their zeros.
    zeros = len(str(said)) - len(str(said).rstrip("0")) if said >= 10_000 else 0
    return round(value, -zeros) == said
