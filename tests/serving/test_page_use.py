"""The page for everybody: keyboard, screen reader, phone, light and dark, and its history."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_tools import MARKS, Open, Opened, opened_browser, page_opener, serving
from playwright.sync_api import Browser, Locator, expect
from serving_tools import Running

pytestmark = MARKS
PHONE = {"viewport": {"width": 360, "height": 640}, "has_touch": True, "is_mobile": True}
LEAST_CONTRAST = 4.5
"""WCAG 2.2, AA, text."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("use"), "adding", "hebrew") as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with page_opener(browser) as opener:
        yield opener


def test_all_can_be_done_with_the_keyboard(open_page: Open, server: Running) -> None:
    opened = open_page(server)
    page, keys = opened.page, opened.page.keyboard
    expect(opened.box).to_be_focused()
    keys.type("One")
    keys.press("Shift+Enter")
    keys.type("more")
    keys.press("Enter")
    expect(opened.questions).to_contain_text("One\nmore")
    expect(opened.texts).to_have_count(1)
    expect(opened.button("Send")).to_be_visible()
    keys.press("ArrowUp")
    expect(page.get_by_label("Edit your message")).to_be_focused()
    keys.press("Escape")
    keys.press("?")
    shortcuts = page.get_by_role("dialog", name="Keyboard shortcuts")
    expect(shortcuts).to_be_visible()
    keys.press("Escape")
    expect(shortcuts).to_be_hidden()
    keys.press("/")
    expect(opened.box).to_be_focused()
    keys.press("?")
    expect(opened.box).to_have_value("?")
    keys.press("Control+/")
    expect(shortcuts).to_be_visible()
    keys.press("Escape")
    expect(opened.box).to_be_focused()
    keys.press("Control+,")
    expect(page.get_by_role("dialog", name="Settings")).to_be_visible()
    keys.press("Escape")
    keys.press("Control+k")
    expect(page.get_by_label("Search your conversations")).to_be_focused()
    keys.press("Control+Shift+O")
    expect(opened.questions).to_have_count(0)
    expect(opened.box).to_be_focused()
    assert opened.problems == []


def test_everything_that_can_be_used_has_a_name(open_page: Open, server: Running) -> None:
    opened = open_page(server)
    opened.ask("Hello")
    expect(opened.page.get_by_role("log", name="Conversation")).to_be_visible()
    expect(opened.page.get_by_role("article", name="Reply of adding")).to_be_visible()
    nameless = opened.page.evaluate(
        """() => [...document.querySelectorAll(`button, input, select, textarea,
            dialog, nav, article`)]
          .filter((it) => !(it.ariaLabel || it.getAttribute("aria-labelledby") || it.labels?.length
            || it.textContent.trim()))
          .map((it) => it.outerHTML)"""
    )
    assert nameless == []
    shared = opened.page.evaluate(
        """() => { const ids = [...document.querySelectorAll("[id]")].map((it) => it.id);
          return ids.filter((id, i) => ids.indexOf(id) !== i); }"""
    )
    assert shared == []


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_colours_are_chosen_kept_and_have_contrast(
    open_page: Open, server: Running, theme: str
) -> None:
    other = {"Light": "dark", "Dark": "light"}[theme]
    opened = open_page(server, color_scheme=other)
    opened.button("Settings").click()
    opened.page.get_by_label(theme).check()
    opened.button("Close settings").click()
    opened.page.reload()
    assert opened.page.evaluate("document.documentElement.dataset.theme") == theme.lower()
    pairs = (
        *("ink ground", "ink panel", "ink side", "ink mine", "ink tool", "ink code"),
        *("soft ground", "soft panel", "soft side", "soft code", "accent ground", "accent panel"),
        *("on-accent accent", "bad bad-ground", "bad panel", "bad side", "ground ink"),
    )
    lightness = {name: _luminance(opened, name) for pair in pairs for name in pair.split()}
    assert (lightness["ground"] > 0.5) == (theme == "Light")
    for pair in pairs:
        low, high = sorted(lightness[name] for name in pair.split())
        assert (high + 0.05) / (low + 0.05) >= LEAST_CONTRAST, pair


def _luminance(opened: Opened, name: str) -> float:
    """Relative luminance of a colour of the page, as WCAG defines it."""
    channels = opened.page.evaluate(
        """(name) => { const spot = document.createElement("span");
          spot.style.color = `var(--${name})`; document.body.append(spot);
          const found = getComputedStyle(spot).color.match(/[\\d.]+/g).slice(0, 3).map(Number);
          spot.remove(); return found; }""",
        name,
    )
    linear = [c / 3294.6 if c <= 10.31 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(part * share for part, share in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(open_page: Open, server: Running, scheme: str) -> None:
    opened = open_page(server, color_scheme=scheme, **PHONE)
    opened.ask("word " * 20 + "x" * 150)
    for name in ("Send", "New conversation", "Settings", "Conversations"):
        expect(opened.button(name)).to_be_in_viewport(ratio=1)
    expect(opened.button("Edit this message")).to_be_visible()
    wide = opened.page.evaluate("document.documentElement.scrollWidth")
    assert wide == PHONE["viewport"]["width"]
    opened.button("Settings").click()
    expect(opened.button("Reset to defaults")).to_be_visible()
    opened.button("Close settings").click()
    opened.button("Conversations").click()
    drawer = opened.page.get_by_role("dialog", name="Conversations")
    expect(drawer.get_by_role("button", name="Delete word")).to_be_visible()
    opened.button("New conversation").is_visible()
    opened.page.keyboard.press("Escape")
    expect(drawer).to_be_hidden()
    opened.button("New conversation").click()
    opened.button("Conversations").click()
    drawer.locator(".title").click()
    expect(drawer).to_be_hidden()
    expect(opened.texts).to_have_count(1)
    assert opened.problems == []


def test_conversations_are_found_renamed_deleted_and_had_back(
    open_page: Open, server: Running
) -> None:
    opened = open_page(server)
    titles = opened.page.locator("#history-list .title")
    opened.ask("About apples")
    opened.button("New conversation").click()
    opened.ask("About pears")
    expect(titles).to_have_text(["About pears", "About apples"])
    titles.last.click()
    expect(opened.questions).to_have_text("You: About apples")
    expect(titles.last).to_have_attribute("aria-current", "true")
    opened.page.locator(".item").last.hover()
    opened.button("Rename About apples").click()
    opened.page.get_by_label("New name").fill("Fruit <b>one</b>")
    opened.page.keyboard.press("Enter")
    expect(opened.page.locator(".title", has_text="Fruit <b>one</b>")).to_be_visible()
    search = opened.page.get_by_label("Search your conversations")
    search.fill("PEARS")
    expect(titles).to_have_text(["About pears"])
    search.fill("truly")
    expect(titles).to_have_count(2)
    search.fill("nothing has this")
    expect(opened.page.locator("#history-none")).to_be_visible()
    search.fill("fruit")
    opened.page.locator(".item").hover()
    opened.button("Delete Fruit <b>one</b>").click()
    expect(opened.questions).to_have_count(0)
    opened.button("Undo").click()
    expect(opened.questions).to_have_text("You: About apples")
    assert opened.problems == []


def test_conversations_are_exported_and_imported(
    open_page: Open, server: Running, tmp_path: Path
) -> None:
    opened = open_page(server)
    page = opened.page
    opened.ask("What is 6*7?")
    page.get_by_text("Export and import").click()
    with page.expect_download() as text:
        opened.button("Save this one as Markdown").click()
    assert text.value.suggested_filename == "What-is-6-7.md"
    written = Path(text.value.path()).read_text(encoding="utf-8")
    assert "What is 6*7?" in written
    assert "adding" in written
    with page.expect_download() as whole:
        opened.button("Export all as JSON").click()
    exported = tmp_path / "exported.json"
    whole.value.save_as(exported)
    opened.button("Delete all").click()
    expect(page.locator(".item")).to_have_count(0)
    page.get_by_label("File to import").set_input_files(exported)
    expect(page.locator("#toast")).to_contain_text("Imported 1 conversation.")
    page.locator(".item .title").click()
    expect(opened.texts).to_have_text("It is 6*7 = 42, truly.")
    nonsense = tmp_path / "nonsense.json"
    nonsense.write_text(json.dumps({"format": 9}), encoding="utf-8")
    page.get_by_label("File to import").set_input_files(nonsense)
    expect(page.locator("#error")).to_be_visible()
    assert opened.problems == []


def test_two_tabs_share_the_history(open_page: Open, server: Running) -> None:
    opened = open_page(server)
    other = opened.context.new_page()
    other.goto(server.url)
    opened.ask("From the first")
    expect(other.locator("#history-list .title")).to_have_text("From the first")
    expect(other.locator(".message")).to_have_count(0)


def test_whoever_reads_further_up_is_left_there(open_page: Open, server: Running) -> None:
    opened = open_page(server, viewport={"width": 800, "height": 400})
    for i in range(5):
        opened.ask(f"Number {i}")
    expect(opened.questions.last).to_be_in_viewport()
    opened.page.locator("#scroller").evaluate("(it) => it.scrollTo(0, 0)")
    opened.button("To the newest message").click()
    expect(opened.texts.last).to_be_in_viewport()
    expect(opened.button("To the newest message")).to_be_hidden()


def test_each_message_is_written_in_the_direction_of_its_own_text(
    open_page: Open, server: Running
) -> None:
    def direction(place: Locator) -> str:
        return str(place.evaluate("(element) => getComputedStyle(element).direction"))

    opened = open_page(server)
    opened.ask("What is six times seven?")
    opened.pick("hebrew")
    opened.box.fill("כמה זה שש כפול שבע?")
    assert direction(opened.box) == "rtl"
    opened.page.keyboard.press("Enter")
    expect(opened.texts.last.locator("pre")).to_be_visible()
    assert [direction(opened.questions.nth(i)) for i in (0, 1)] == ["ltr", "rtl"]
    assert [direction(opened.texts.nth(i)) for i in (0, 1)] == ["ltr", "rtl"]
    for part in (".tool", "pre", "li > code", ".copy-code"):
        assert direction(opened.texts.last.locator(part)) == "ltr", part
    assert direction(opened.texts.last.locator("ul")) == "rtl"
    assert direction(opened.page.locator("#history-list .title")) == "ltr"
