"""Conversations kept in the browser: nothing is lost, and nothing foreign comes in."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from page_sources import BROWSER, Sources, browser
from playwright.sync_api import Browser, Error

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine"),
]

KEEP = "(one) => kept.save(one)"
LIST = "() => kept.list().map((line) => line.id)"
FULL = 5 << 20
"""Characters that Chromium keeps of one origin."""

Tab = Callable[..., Sources]


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as found:
        yield found


@pytest.fixture
def tab(chromium: Browser) -> Iterator[Tab]:
    """Tabs of one browser, each with a history `kept`."""
    context = chromium.new_context()

    def _open(storage: str = "localStorage") -> Sources:
        opened = Sources(context, "history.js")
        opened.page.evaluate(f"() => {{ globalThis.kept = new History({storage}); }}")
        return opened

    yield _open
    context.close()


def conversation(name: str, day: int = 1, text: str = "Hi?", **fields: Any) -> dict[str, Any]:
    time = f"2026-01-{day:02}T10:00:00.000Z"
    return {
        "id": name,
        "title": f"About {name}",
        "created": time,
        "updated": time,
        "settings": {"models": ["demo"], "sampling": {"temperature": 0.5}},
        "messages": [
            {"role": "user", "content": text},
            {"role": "assistant", "content": "Hello.", "model": "demo", "seed": 7},
        ],
    } | fields


def rich(name: str) -> dict[str, Any]:
    """One with all that a message may have."""
    parts = [{"kind": "python", "text": "6*7"}, {"kind": "python_output", "text": "42"}]
    reply = {"role": "assistant", "content": "", "nanochat_parts": parts, "model": "demo"}
    reply |= {"seed": None, "note": "Stopped.", "sampling": {"top_k": 5}, "finish": "stopped"}
    reply |= {"tokens": 3, "seconds": 0.5}
    message = reply | {"other": reply, "variants": [reply, reply], "variant": 1}
    return conversation(name, messages=[{"role": "user", "content": "\ud800 é 😀"}, message])


def exported(*conversations: Any, **fields: Any) -> str:
    file = {"format": "nanochat conversations", "version": 1, "conversations": conversations}
    return json.dumps(file | {"exported": "2026-01-31T12:00:00Z"} | fields)


def told(opened: Sources, text: str) -> str:
    """What the import of a bad file says."""
    with pytest.raises(Error) as error:
        opened.page.evaluate("(text) => kept.importAll(text)", text)
    return str(error.value)


def test_what_was_saved_is_there_after_a_reload(tab: Tab) -> None:
    page = tab().page
    for one in (conversation("old", 1), rich("new") | {"updated": "2026-02-01T00:00:00Z"}):
        assert page.evaluate(KEEP, one) == 0
    page = tab().page
    assert page.evaluate("() => kept.list()") == [
        {"id": "new", "title": "About new", "updated": "2026-02-01T00:00:00Z"},
        {"id": "old", "title": "About old", "updated": "2026-01-01T10:00:00.000Z"},
    ]
    assert page.evaluate("() => kept.load('old')") == conversation("old")
    assert page.evaluate("() => kept.load('none')") is None
    page.evaluate("() => kept.remove('old')")
    assert page.evaluate(LIST) == ["new"]
    page.evaluate("() => { localStorage.setItem('nanochat.theme', 'dark'); kept.clear(); }")
    assert page.evaluate("() => [kept.list().length, localStorage.length]") == [0, 1]


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("  What\n is  it? ", "What is it?"),
        ("😀" * 100, "😀" * 59 + "…"),
        ("", "Untitled"),
    ],
)
def test_an_empty_title_is_made_of_the_first_question(tab: Tab, question: str, title: str) -> None:
    page = tab().page
    page.evaluate(KEEP, conversation("a", text=question, title=""))
    assert page.evaluate("() => kept.list()[0].title") == title


def test_two_tabs_keep_what_each_of_them_says(tab: Tab) -> None:
    first, second = tab(), tab()
    first.page.evaluate("() => { globalThis.told = 0; kept.onChange = () => { told += 1; }; }")
    second.page.evaluate("() => localStorage.setItem('nanochat.theme', 'dark')")
    for day in range(1, 4):
        first.page.evaluate(KEEP, conversation(f"first{day}", day))
        second.page.evaluate(KEEP, conversation(f"second{day}", day))
    first.page.wait_for_function("told === 3")
    assert first.page.evaluate(LIST) == second.page.evaluate(LIST)
    assert len(first.page.evaluate(LIST)) == 6
    second.page.evaluate("() => kept.clear()")
    first.page.wait_for_function("told === 9")
    assert first.page.evaluate(LIST) == []


def test_the_oldest_go_when_the_storage_is_full(tab: Tab) -> None:
    page = tab().page
    quarter = "x" * (FULL // 4)
    for day in (3, 1, 2):
        assert page.evaluate(KEEP, conversation(f"day{day}", day, quarter)) == 0
    assert page.evaluate(KEEP, conversation("now", 4, quarter)) == 1
    assert page.evaluate(LIST) == ["now", "day3", "day2"]
    # The current one grows, and it is the oldest by now.
    twice = [{"role": role, "content": quarter} for role in ("user", "assistant")]
    assert page.evaluate(KEEP, conversation("day2", 2, messages=twice)) == 1
    assert page.evaluate(LIST) == ["now", "day2"]
    assert page.evaluate("() => kept.isPersistent")


def test_one_that_can_have_no_room_costs_no_other(tab: Tab) -> None:
    page = tab().page
    page.evaluate("() => localStorage.setItem('other', 'x'.repeat(4 << 20))")
    for day in (1, 2):
        page.evaluate(KEEP, conversation(f"day{day}", day))
    huge = conversation("huge", 3, "x" * (FULL // 4))
    assert page.evaluate(KEEP, huge) == 0
    assert page.evaluate("() => [kept.isPersistent, kept.load('huge').id]") == [False, "huge"]
    assert page.evaluate(LIST) == ["huge", "day2", "day1"]
    page.evaluate(KEEP, conversation("huge", 3))
    assert page.evaluate("() => kept.isPersistent")
    assert tab().page.evaluate(LIST) == ["huge", "day2", "day1"]


FORBIDDEN = "new Proxy({}, { get() { throw new DOMException('no', 'SecurityError'); } })"
READ_ONLY = (
    "Object.assign(Object.create(null), { length: 0, key: () => null, getItem: () => null })"
)


@pytest.mark.parametrize("storage", ["null", FORBIDDEN, READ_ONLY])
def test_without_a_storage_it_lasts_as_long_as_the_page(tab: Tab, storage: str) -> None:
    page = tab(storage).page
    page.evaluate(KEEP, conversation("a"))
    page.evaluate(KEEP, conversation("b", 2))
    assert page.evaluate("() => kept.isPersistent") is False
    assert page.evaluate(LIST) == ["b", "a"]
    text = page.evaluate("() => kept.exportAll()")
    page.evaluate("() => kept.remove('a')")
    assert page.evaluate("(text) => kept.importAll(text)", text) == 1
    assert page.evaluate("() => kept.load('a')") == conversation("a")
    page.evaluate("() => kept.clear()")
    assert page.evaluate(LIST) == []


def test_all_that_is_exported_comes_back(tab: Tab) -> None:
    page = tab().page
    for one in (conversation("a", 2), rich("b"), conversation("__proto__", 3)):
        page.evaluate(KEEP, one)
    before = page.evaluate("() => kept.list().map((line) => kept.load(line.id))")
    text = page.evaluate("() => kept.exportAll()")
    assert page.evaluate("(text) => kept.importAll(text)", text) == 0
    page.evaluate("() => kept.clear()")
    assert page.evaluate("(text) => kept.importAll(text)", text) == 3
    assert page.evaluate("() => kept.list().map((line) => kept.load(line.id))") == before


def test_an_old_copy_comes_beside_what_was_said_since(tab: Tab) -> None:
    page = tab().page
    page.evaluate(KEEP, conversation("a", text="since"))
    text = exported(conversation("a", text="before"), conversation("b"))
    assert page.evaluate("(text) => kept.importAll(text)", text) == 2
    assert page.evaluate("() => kept.load('a').messages[0].content") == "since"
    assert len(page.evaluate(LIST)) == 3


def test_an_import_without_room_costs_no_other(tab: Tab) -> None:
    page = tab().page
    page.evaluate(KEEP, conversation("a"))
    many = exported(*(conversation(f"n{i}", 5, text="x" * 1_900_000) for i in range(4)))
    assert page.evaluate("(text) => kept.importAll(text)", many) == 4
    assert page.evaluate(LIST) == ["n0", "n1", "n2", "n3", "a"]
    assert page.evaluate("() => kept.isPersistent") is False
    assert tab().page.evaluate(LIST) == ["n0", "n1", "a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("[]", "the file is [], expected an object"),
        ("{}", 'the file has no field "format"'),
        (exported(conversation("a"), version=2), "the file.version is 2, expected 1"),
        (exported(conversation("a"), more=1), 'unknown field "more"'),
        (exported(1), "the file.conversations[0] is 1, expected an object"),
        (exported(conversation("a/b")), "conversations[0].id is"),
        (exported(conversation("a", title=None)), "title is null, expected a text"),
        (exported(conversation("a", updated="soon")), 'updated is "soon", expected a time'),
        (exported(conversation("a", messages={})), "messages is {}, expected a list"),
        (exported(conversation("a", messages=[{"role": "boss", "content": ""}])), "[0].role is"),
        (exported(conversation("a", messages=[{"role": "user"}])), 'no field "content"'),
        (exported(conversation("a", messages=["x" * 100])), "x…, expected an object"),
        (exported(conversation("a", settings={"a": {"b": {"c": {"d": {}}}}})), "smaller"),
        (exported(conversation("a", settings={"x": "y" * 2000})), "at most 1000 characters"),
        (exported(conversation("a", text="x" * 2_000_001)), "at most 2000000 characters"),
        (exported(conversation("a")).replace('"title"', '"__proto__"'), 'no field "title"'),
        (exported(conversation("a", __proto__={"x": 1})), 'unknown field "__proto__"'),
        (exported(conversation("a", settings={"__proto__": {"x": 1}})), '"__proto__", expected'),
        (exported(conversation("a", settings={"constructor": 1})), '"constructor", expected'),
        ("[" * 100_000, "no JSON"),
    ],
)
def test_a_file_of_another_shape_is_refused_whole(tab: Tab, text: str, message: str) -> None:
    opened = tab()
    good = conversation("good")
    text = text.replace('"conversations": [', f'"conversations": [{json.dumps(good)}, ')
    message = message.replace("conversations[0]", "conversations[1]")
    assert message in told(opened, text)
    assert opened.page.evaluate("() => [kept.list().length, {}.x, localStorage.length]") == [
        0,
        None,
        0,
    ]


@pytest.mark.parametrize(
    "raw", ["", "null", "{", "[]", '{"id": "a"}', json.dumps(conversation("b"))]
)
def test_what_others_put_in_the_storage_is_passed_over(tab: Tab, raw: str) -> None:
    page = tab().page
    page.evaluate("(raw) => localStorage.setItem('nanochat.conversation.a', raw)", raw)
    page.evaluate(KEEP, conversation("c"))
    assert page.evaluate("() => [kept.list().length, kept.load('a')]") == [1, None]
    assert page.evaluate("() => JSON.parse(kept.exportAll()).conversations.length") == 1


def test_markdown_tells_who_said_what(tab: Tab) -> None:
    page = tab().page
    text = page.evaluate("(one) => kept.toMarkdown(one)", rich("a") | {"title": ""})
    assert text == (
        "# \ud800 é 😀\n\n## You\n\n\ud800 é 😀\n\n## Model (demo)\n\n"
        "```python\n6*7\n```\n\n```output\n42\n```\n"
    )
    code = {"role": "assistant", "content": "", "nanochat_parts": []}
    code["nanochat_parts"] = [{"kind": "python", "text": "'```'"}, {"kind": "text", "text": "ok"}]
    text = page.evaluate("(one) => kept.toMarkdown(one)", conversation("a", messages=[code]))
    assert "````python\n'```'\n````\n\nok\n" in text
