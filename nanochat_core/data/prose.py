"""Prose out of documentation: the paragraphs of a docstring or README that read as English.

Which rules were tried, and what a small model learns from the result, was measured before; the
thresholds are those of that measurement. Whoever changes any of them raises
`FILTER_VERSION`, which is part of the recipe.
"""

import re
from collections.abc import Iterator
from inspect import cleandoc

FILTER_VERSION = 1

MIN_CHARACTERS, MAX_CHARACTERS = 50, 2_500
MIN_WORDS = 9
MIN_STOP_WORDS = 0.22
MIN_PLAIN_CHARACTERS = 0.94
MAX_CODE_WORDS = 0.12

_STOP_WORDS_TEXT = """
a about after all also an and any are as at be because been before being between both but by can
cannot could did do does each either else even every first for from given had has have here how i
if in instead into is it its itself just like may more most must need needs no not of on once one
only or other otherwise our out over rather same should since so some still such than that the
their them then there therefore these they this those through to too two under until up use used
uses using was we well were what when where whether which while who whose will with within without
would you your
"""
STOP_WORDS = frozenset(_STOP_WORDS_TEXT.split())

_SECTIONS_TEXT = """
parameters returns return yields yield receives raises warns warnings attributes methods arguments
args keyword other see references reference example examples usage
"""
_DROPPED_SECTIONS = frozenset(_SECTIONS_TEXT.split())

_UNDERLINE = re.compile(r"^[-=~^\"'`#*+]{3,}$")
_HEADING = re.compile(r"^#{1,6} ")
_FIELD = re.compile(r"^(:\w[^:]*:|@\w+)", re.MULTILINE)
_LIST_ITEM = re.compile(r"^([-*+•]|\(?(\d{1,2}[.)]|[a-zA-Z]\))|\[\w+\]) ", re.MULTILINE)
_LABEL = re.compile(r"^(\w+)[\w ]{0,12}:\s")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_HTML_BLOCK = re.compile(r"<!--.*?-->|<[a-zA-Z/][^<>]*>", re.DOTALL)

_ROLE = re.compile(r":[a-zA-Z][\w:+-]*:`([^`]*)`")
_ROLE_TARGET = re.compile(r"^(.*?)\s*<[^<>]*>$", re.DOTALL)
_RST_LINK = re.compile(r"`([^`<>]+?)\s*<[^`<>]*>`_{1,2}")
_MARKDOWN_IMAGE = re.compile(r"!\[[^\]]*\]\([^()]*\)")
_MARKDOWN_LINK = re.compile(r"\[([^\[\]]+)\](?:\([^()]*\)|\[[^\[\]]*\])")
_TICKS = re.compile(r"`{1,2}([^`]+)`{1,2}_{0,2}")
_STRONG = re.compile(r"(?<![\w*])\*{1,2}(?=[^\s*])([^*\n]+?)(?<=[^\s*])\*{1,2}(?![\w*])")

_FORBIDDEN = re.compile(
    r"[{\\]|::|>>>|https?:|www\.|ftp:|\S@\w|"
    r"licen[sc]|copyright|warrant|redistribut|all rights reserved|\bmerchantab",
    re.IGNORECASE,
)
_PLAIN = re.compile(r"[^A-Za-z ,.;:'\"!?()-]")
_CODE_WORD = re.compile(r"[_=\[\]/*#@+&<>|~^$%]|\w\.\w|\w\(|[a-z][A-Z]|^-{1,2}\w")
_WORD_EDGES = ".,;:!?()'\"-"
_TYPOGRAPHY = str.maketrans(
    {
        "\u2018": "'",
        "\u2019": "'",
        "\u201c": '"',
        "\u201d": '"',
        "\u2013": "-",
        "\u2014": "-",
        "\u2026": "...",
    }
)


def strip_markup(text: str) -> str:
    """Text of one paragraph on one line, without RST and Markdown mark-up."""
    if "`" in text:
        text = _ROLE.sub(_role_text, text)
        text = _RST_LINK.sub(r"\1", text)
        text = _TICKS.sub(r"\1", text)
    if "](" in text or "][" in text:
        text = _MARKDOWN_LINK.sub(r"\1", _MARKDOWN_IMAGE.sub("", text))
    if "*" in text:
        text = _STRONG.sub(r"\1", text)
    return " ".join(text.translate(_TYPOGRAPHY).split())


def _role_text(match: re.Match[str]) -> str:
    inner = match.group(1)
    if titled := _ROLE_TARGET.match(inner):
        return titled.group(1)
    if inner.startswith("~"):
        return inner.rsplit(".", 1)[-1].lstrip("~")
    return inner.lstrip("!.")


def is_prose(text: str) -> bool:
    """Whether a paragraph, on one line, reads as English sentences."""
    if not MIN_CHARACTERS <= len(text) <= MAX_CHARACTERS or not text.isascii():
        return False
    if not text[0].isupper() or text[-1] not in ".!?" or _FORBIDDEN.search(text):
        return False
    if (label := _LABEL.match(text)) and label.group(1).lower() in _DROPPED_SECTIONS:
        return False
    if len(_PLAIN.findall(text)) > (1 - MIN_PLAIN_CHARACTERS) * len(text):
        return False
    words = text.split()
    if len(words) < MIN_WORDS:
        return False
    stop_words = sum(word.strip(_WORD_EDGES).lower() in STOP_WORDS for word in words)
    if stop_words < MIN_STOP_WORDS * len(words):
        return False
    code_words = sum(_CODE_WORD.search(word) is not None for word in words)
    return code_words <= MAX_CODE_WORDS * len(words)


def _is_dropped_heading(line: str) -> bool:
    words = line.rstrip(":").lower().split()
    return bool(words) and words[0] in _DROPPED_SECTIONS


def _blocks(text: str) -> Iterator[list[str]]:
    """Runs of lines between blank ones, without sections that are tables of names."""
    skipping = False
    for chunk in re.split(r"\n[ \t]*\n", text):
        lines = [line.rstrip() for line in chunk.split("\n") if line.strip()]
        if not lines:
            continue
        if len(lines) > 1 and _UNDERLINE.match(lines[1]):
            skipping = _is_dropped_heading(lines[0])
            lines = lines[2:]
        elif _HEADING.match(lines[0]):
            skipping = _is_dropped_heading(lines[0].lstrip("# "))
            lines = lines[1:]
        if lines and not skipping:
            yield lines


def _running_text(lines: list[str]) -> str:
    """The lines of a block that is a paragraph at base indentation; else nothing."""
    if any(line[0] in " \t" or _UNDERLINE.match(line) for line in lines):
        return ""
    if lines[0].startswith((".. ", ">>>", "|", "+-", ":", "@")) or _LIST_ITEM.match(lines[0]):
        return ""
    text = "\n".join(lines)
    for pattern in (_FIELD, _LIST_ITEM):
        if found := pattern.search(text):
            text = text[: found.start()]
    return text


def paragraphs(docstring: str) -> list[str]:
    """Paragraphs of a docstring that are prose, each on one line; "" stands for a dropped first.

    So the first item is the docstring's opening paragraph, or empty.
    """
    found: list[str] = []
    for number, lines in enumerate(_blocks(cleandoc(docstring))):
        text = strip_markup(_running_text(lines))
        if text and is_prose(text):
            found.append(text)
        elif number == 0:
            found.append("")
    return found


def description_paragraphs(description: str) -> list[str]:
    """Prose of a README in Markdown or RST."""
    text = _HTML_BLOCK.sub("", _FENCE.sub("", description.replace("\r\n", "\n")))
    return [paragraph for paragraph in paragraphs(text) if paragraph]
