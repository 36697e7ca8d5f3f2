"""Markdown on the chat page, in a real browser: as others read it, inert, and linear in time."""

import random
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
from markdown_corpus import AGREED, BOMBS, HOSTILE, NO_ADDRESSES
from markdown_it import MarkdownIt
from page_sources import BROWSER, FOLDER, Sources, browser

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine"),
]

RENDERED = """(texts) => texts.map((text) => {
  const box = document.createElement("div");
  box.append(renderMarkdown(text));
  return box.innerHTML;
})"""
MOST_MS = 3000
"""Of 100 kB on a busy machine; what is quadratic needs minutes."""

ALLOWED: dict[str, set[str]] = {
    **{tag: set() for tag in ("p", "br", "hr", "h3", "h4", "h5", "h6", "strong", "em", "del")},
    **{tag: set() for tag in ("blockquote", "ul", "table", "thead", "tbody", "tr")},
    "a": {"href", "rel", "target"},
    "ol": {"start"},
    "li": {"class"},
    "input": {"type", "disabled", "aria-label"},
    "code": set(),
    "pre": {"tabindex"},
    "div": {"class", "tabindex"},
    "th": {"class", "scope"},
    "td": {"class"},
}


@pytest.fixture(scope="module")
def opened() -> Iterator[Sources]:
    with browser() as found:
        yield Sources(found.new_context(), "markdown_inline.js", "markdown.js")


def html_of(opened: Sources, text: str) -> str:
    return opened.page.evaluate(RENDERED, [text])[0]


class Outline(HTMLParser):
    """Tags, addresses and text in order, without the page's own frames and without white space
    between blocks."""

    VOID = ("br", "hr", "input")
    INLINE = ("em", "strong", "del", "a", "code")
    NAMES = {"s": "del"} | {f"h{n}": "heading" for n in range(1, 7)}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.events: list[str] = []
        self.num_pre = 0
        self.is_label = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        fields, tag = dict(attrs), self.NAMES.get(tag, tag)
        self.is_label = fields.get("class") == "language"
        self.num_pre += tag == "pre"
        if tag == "div":
            return
        href = (fields.get("href") or "").rstrip("/")
        start = fields.get("start") or ""
        self._add(f"<{tag} {href}{start}>", is_block=tag not in self.INLINE)

    def handle_endtag(self, tag: str) -> None:
        self.is_label, tag = False, self.NAMES.get(tag, tag)
        self.num_pre -= tag == "pre"
        if tag != "div" and tag not in self.VOID:
            self._add(f"</{tag}>", is_block=tag not in self.INLINE)

    def _add(self, event: str, is_block: bool) -> None:
        if is_block and self.events and not self.events[-1].startswith("<") and not self.num_pre:
            self.events[-1] = self.events[-1].rstrip()
            if not self.events[-1]:
                self.events.pop()
        self.events.append(event)

    def handle_data(self, data: str) -> None:
        if self.is_label:
            return
        last = self.events[-1] if self.events else "<p>"
        is_inside = not last.startswith("<") or last.split()[0].strip("</>") in self.INLINE
        text = data if self.num_pre or is_inside else data.lstrip()
        text = text.replace("<", "&lt;")
        if not last.startswith("<"):
            self.events[-1] += text
        elif text:
            self.events.append(text)


def reference() -> MarkdownIt:
    """Markdown as others read it, without what is left out here."""
    options = {"breaks": True, "html": False}
    parser = MarkdownIt("commonmark", options).enable(["table", "strikethrough"])
    return parser.disable(["code", "lheading", "reference", "image"])


def test_it_is_read_as_markdown_it_reads_it(opened: Sources) -> None:
    parser = reference()
    for text in AGREED:
        expected = Outline(parser.render(text)).events
        assert Outline(html_of(opened, text)).events == expected, text
    assert opened.problems == []


def test_random_emphasis_and_code_are_read_as_markdown_it_reads_them(opened: Sources) -> None:
    rng, parser = random.Random(0), reference()
    pieces = ["*", "**", "_", "__", "`", "``", "a", "b", " ", ".", "~~", "[c](mailto:d)", "\\"]
    texts = ["x" + "".join(rng.choices(pieces, k=rng.randint(2, 14))) + "y" for _ in range(600)]
    rendered = opened.page.evaluate(RENDERED, texts)
    for text, html in zip(texts, rendered, strict=True):
        if "~~~" in text:  # more than two strike nothing here
            continue
        assert Outline(html).events == Outline(parser.render(text)).events, text


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("- [ ] a\n- [X] b", '<ul><li class="task"><input type="checkbox" disabled="" '),
        ("| a | b |\n|:-:|--:|\n| 1 | 2 |", '<td class="center">1</td><td class="right">2</td>'),
        (
            "```python x\na\n```",
            '<div class="code"><div class="language">python</div><pre tabindex',
        ),
        ("`` `a``\n```\nb", '<pre tabindex="0"><code>b\n</code></pre>'),
        ("See https://a.b/c_(d)_e, or (http://f.g).", ">https://a.b/c_(d)_e</a>, or (<a href"),
        ("xhttp://a.b", "<p>xhttp://a.b</p>"),
        ("[https://a.b](https://c.d)", 'nofollow">https://a.b</a></p>'),
        ("![a](http://b.c/d.png)", '<p><a href="http://b.c/d.png" '),
        ("![a](d.png)", "<p>![a](d.png)</p>"),
        ("[](http://a.b)", ">http://a.b/</a>"),
        ("&#xE000;0&#57345; &#xD800;", "<p>\ufffd0\ufffd \ufffd</p>"),
        ("about ~5 or ~6 or 7~~8", "<p>about ~5 or ~6 or 7~~8</p>"),
        ("- a\n      - b", "<li>a<ul><li>b</li></ul></li>"),
    ],
)
def test_what_others_do_in_other_ways(opened: Sources, text: str, html: str) -> None:
    assert html in html_of(opened, text)


def foreign_parts(opened: Sources) -> list[str]:
    """Elements and attributes of the page's body that Markdown has no use for."""
    found: list[list[Any]] = opened.page.evaluate(
        "() => [...document.querySelectorAll('main *')].map((e) => [e.localName, e.namespaceURI,"
        " e.getAttributeNames(), e.localName === 'a' ? e.protocol : 'http:'])"
    )
    wrong = []
    for tag, namespace, names, protocol in found:
        is_html = namespace == "http://www.w3.org/1999/xhtml"
        is_known = tag in ALLOWED and set(names) <= ALLOWED[tag]
        if not (is_html and is_known and protocol in ("http:", "https:", "mailto:")):
            wrong.append(f"{tag} {names} {protocol}")
    return wrong


def test_hostile_text_is_inert(opened: Sources) -> None:
    for text in (*HOSTILE, "\n\n".join(HOSTILE)):
        for whole in (text, f"- > {text}", f"*{text}*", f"[{text}](http://a.test)"):
            opened.page.evaluate(
                "(text) => document.querySelector('main').replaceChildren(renderMarkdown(text))",
                whole,
            )
            assert foreign_parts(opened) == [], whole
    opened.page.wait_for_timeout(200)
    assert opened.page.evaluate("window.hit") is None
    assert opened.problems == []


def test_no_bad_address_becomes_a_link(opened: Sources) -> None:
    texts = [f"[a]({address}) [a](<{address}>) <{address}>" for address in NO_ADDRESSES]
    links = opened.page.evaluate(
        "(texts) => texts.flatMap((text) => [...renderMarkdown(text).querySelectorAll('a')]"
        ".map((link) => link.href))",
        texts,
    )
    assert set(links) == {"http://page.test/", "http://page.test/1"}


def test_no_source_makes_html_of_text() -> None:
    for name in ("markdown.js", "markdown_inline.js"):
        source = (FOLDER / name).read_text(encoding="utf-8").casefold()
        for banned in ("innerhtml", "outerhtml", "insertadjacent", "eval(", "domparser", "write("):
            assert banned not in source
        assert "setattribute" not in source.replace('box.setattribute("aria-label"', "")


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_takes_no_time_and_makes_no_depth(opened: Sources, name: str) -> None:
    seconds, depth = opened.page.evaluate(
        """(text) => {
          const start = performance.now();
          let level = [...renderMarkdown(text).childNodes], depth = 0;
          const seconds = performance.now() - start;
          for (; level.length; depth += 1) level = level.flatMap((node) => [...node.childNodes]);
          return [seconds, depth];
        }""",
        BOMBS[name],
    )
    assert seconds < MOST_MS
    assert depth < 60


def random_texts(seed: int, count: int) -> list[str]:
    rng = random.Random(seed)
    pieces = [
        *(
            "\n",
            "\n",
            "\n\n",
            "- ",
            "* ",
            "-",
            "1",
            ". ",
            "1. ",
            "2) ",
            "> ",
            ">",
            "#",
            "# a",
            "---",
        ),
        *(
            "***",
            "```",
            "~~~",
            "a",
            "b c",
            "|",
            "|-|-|",
            "-|-",
            "  ",
            "    ",
            "\t",
            "*",
            "`",
            "[a](",
        ),
        *("http://b)", "[ ] ", "\r\n", "\r", "\\", "~~"),
    ]
    return ["".join(rng.choices(pieces, k=rng.randint(1, 24))) for _ in range(count)]


def test_blocks_one_after_another_are_the_whole(opened: Sources) -> None:
    wrong = opened.page.evaluate(
        """(texts) => texts.filter((text) => {
          const whole = document.createElement("div"), apart = document.createElement("div");
          const blocks = splitMarkdownBlocks(text);
          whole.append(renderMarkdown(text));
          for (const block of blocks) apart.append(renderMarkdown(block));
          const isSame = blocks.join("") === text.replace(/\\r\\n?/g, "\\n");
          return whole.innerHTML !== apart.innerHTML || (whole.innerHTML && !isSame);
        })""",
        random_texts(1, 3000),
    )
    assert wrong == []


def test_a_growing_text_changes_its_last_block_alone(opened: Sources) -> None:
    wrong = opened.page.evaluate(
        """(texts) => texts.filter((text) => {
          let before = [];
          for (let end = 1; end <= text.length; end += 1) {
            const blocks = splitMarkdownBlocks(text.slice(0, end));
            if (before.slice(0, -1).some((block, i) => block !== blocks[i])) return true;
            before = blocks;
          }
          return false;
        })""",
        random_texts(2, 1000),
    )
    assert wrong == []
