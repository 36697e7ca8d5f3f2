"""The page in a real browser: it answers, stops, and says what is wrong."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from serving_tools import LAUGH, SUM, Running, save_folders, started

BROWSER = next(
    (
        found
        for n in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(n))
    ),
    None,
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def laughing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folders = save_folders(tmp_path_factory.mktemp("laugh"), *LAUGH, sequence_len=1000)
    with started([*folders, "--max-waiting", "1"]) as running:
        yield running


@pytest.fixture(scope="module")
def adding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(save_folders(tmp_path_factory.mktemp("sum"), *SUM)) as running:
        yield running


class Opened:
    """A page that shows no error of its own and asks nobody but its server."""

    def __init__(self, browser: Browser, server: Running, **context) -> None:
        self.context = browser.new_context(**context)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda line: self.problems.append(line.text))
        self.page.on("request", lambda request: self._check(request.url, server.url))
        self.page.goto(server.url)

    def _check(self, url: str, allowed: str) -> None:
        if not url.startswith((allowed, "data:")):
            self.problems.append(f"asked {url}")

    def send(self, text: str) -> None:
        self.page.get_by_label("Your message").fill(text)
        self.page.keyboard.press("Enter")


Open = Callable[..., Opened]


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    pages: list[Opened] = []

    def _open(server: Running, **context) -> Opened:
        pages.append(Opened(browser, server, **context))
        return pages[-1]

    yield _open
    for opened in pages:
        opened.context.close()


def test_the_page_answers_in_turn_and_shows_the_calculation(
    open_page: Open, adding: Running, tmp_path: Path
) -> None:
    opened = open_page(adding)
    page = opened.page
    expect(page.get_by_text("scripted, on cpu")).to_be_visible()
    opened.send("What is 6*7?")
    expect(page.locator(".message.assistant")).to_have_text("Model: 6*7 = 42ok")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    with page.expect_request("**/v1/chat/completions") as asked:
        opened.send("<b>Again</b> <script>alert(1)</script>")
    expect(page.locator(".message.assistant")).to_have_count(2)
    expect(page.locator(".tool")).to_have_text(["6*7 = 42", "6*7 = 42"])
    expect(page.locator(".message.user").last).to_contain_text("<b>Again</b> <script>alert(1)")
    sent = asked.value.post_data_json["messages"]
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert [part["text"] for part in sent[1]["nanochat_parts"]] == ["6*7", "42", "ok"]
    page.screenshot(path=tmp_path / "answers.png")
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator(".message")).to_have_count(0)
    assert opened.problems == []


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_reply_and_the_next_message_is_answered(
    open_page: Open, laughing: Running, tmp_path: Path, how: str
) -> None:
    opened = open_page(laughing)
    page = opened.page
    opened.send("Laugh")
    reply = page.locator(".message.assistant")
    expect(reply).to_contain_text("hahaha")
    if how == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    expect(reply).to_contain_text("(stopped)")
    page.screenshot(path=tmp_path / "stopped.png")
    text = reply.text_content()
    assert len(text or "") < 512
    opened.send("More")
    expect(page.locator(".message.assistant")).to_have_count(2)
    expect(page.locator(".message.assistant").last).to_contain_text("length limit", timeout=20_000)
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    assert reply.first.text_content() == text
    assert opened.problems == []


def test_a_busy_server_is_said_and_the_message_is_not_lost(
    open_page: Open, laughing: Running, tmp_path: Path
) -> None:
    pages = [open_page(laughing) for _ in range(3)]
    for opened in pages:
        # As long as possible, so that the last finds the queue full.
        opened.page.route(
            "**/v1/chat/completions",
            lambda route: route.continue_(
                post_data={**route.request.post_data_json, "max_tokens": 4096}
            ),
        )
        opened.send("Laugh")
        opened.page.wait_for_timeout(300)
    page = pages[2].page
    expect(page.get_by_role("alert")).to_contain_text("the server is busy, 1 requests wait")
    expect(page.get_by_label("Your message")).to_have_value("Laugh")
    expect(page.locator(".message")).to_have_count(0)
    page.screenshot(path=tmp_path / "busy.png")
    for opened in pages[:2]:
        opened.page.keyboard.press("Escape")
        expect(opened.page.locator(".message.assistant")).to_contain_text("(stopped)")


def test_a_server_that_is_gone_is_said(open_page: Open, tmp_path: Path) -> None:
    with started(save_folders(tmp_path, *LAUGH, sequence_len=1000)) as running:
        opened = open_page(running)
        page = opened.page
        opened.send("Laugh")
        expect(page.locator(".message.assistant")).to_contain_text("hahaha")
        running.process.kill()
        running.process.wait()
        expect(page.get_by_role("alert")).to_be_visible()
        expect(page.locator(".message.assistant")).to_contain_text("(incomplete)")
        opened.send("Still there?")
        expect(page.get_by_role("alert")).to_contain_text("does not answer")
        expect(page.get_by_label("Your message")).to_have_value("Still there?")
        page.screenshot(path=tmp_path / "gone.png")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(
    open_page: Open, adding: Running, tmp_path: Path, scheme: str
) -> None:
    opened = open_page(adding, viewport={"width": 320, "height": 600}, color_scheme=scheme)
    page = opened.page
    opened.send("word " * 20 + "x" * 150)
    expect(page.locator(".tool")).to_be_visible()
    for name in ("Send", "New conversation"):
        expect(page.get_by_role("button", name=name)).to_be_in_viewport(ratio=1)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    page.screenshot(path=tmp_path / "phone.png")
