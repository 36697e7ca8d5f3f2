"""The page when something is wrong: it says what, keeps what was written, and tries again."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from page_tools import MARKS, Open, Opened, opened_browser, page_opener, serving
from playwright.sync_api import Browser, expect
from serving_tools import Running

pytestmark = MARKS
KEY = "open-sesame"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One reply at a time, one that waits, rows of 5,000 tokens, and a key."""
    arguments = ("--rows", "1", "--max-waiting", "1")
    folder = tmp_path_factory.mktemp("narrow")
    changes = {"sequence_len": 500}
    with serving(folder, "laughing", arguments=arguments, changes=changes, key=KEY) as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with page_opener(browser) as opener:
        yield opener


def give_key(opened: Opened, key: str) -> None:
    opened.page.get_by_label("API key", exact=True).fill(key)
    opened.button("Use this key").click()


def with_key(open_page: Open, server: Running, **context) -> Opened:
    opened = open_page(server, **context)
    give_key(opened, KEY)
    expect(opened.page.get_by_label("Model", exact=True)).to_have_value("laughing")
    return opened


def test_a_server_that_wants_a_key_is_given_one_for_this_tab_alone(
    open_page: Open, narrow: Running
) -> None:
    opened = open_page(narrow)
    page = opened.page
    dialog = page.get_by_role("dialog", name="This server wants an API key")
    expect(dialog).to_be_visible()
    give_key(opened, "wrong")
    expect(dialog.get_by_text("did not take that key")).to_be_visible()
    give_key(opened, KEY)
    expect(dialog).to_be_hidden()
    expect(page.get_by_label("Model", exact=True)).to_have_value("laughing")
    opened.set(max_tokens="5")
    assert KEY not in str(opened.ask("Laugh"))
    kept = page.evaluate("[JSON.stringify({...localStorage}), JSON.stringify({...sessionStorage})]")
    assert [KEY in text for text in kept] == [False, True]
    page.reload()
    expect(opened.texts).to_contain_text("haha")
    expect(dialog).to_be_hidden()


def test_without_a_key_nothing_is_lost(open_page: Open, narrow: Running) -> None:
    opened = open_page(narrow)
    opened.button("Cancel").click()
    expect(opened.page.get_by_role("alert")).to_contain_text("wants an API key")
    opened.set(max_tokens="5")
    opened.send("Laugh")
    opened.button("Cancel").click()
    expect(opened.replies).to_contain_text("wants an API key")
    opened.button("Retry", opened.replies).click()
    give_key(opened, KEY)
    expect(opened.texts).to_contain_text("haha")


def test_a_busy_server_is_said_with_the_time_and_the_message_is_sent_again(
    open_page: Open, narrow: Running
) -> None:
    pages = [with_key(open_page, narrow) for _ in range(3)]
    for opened in pages:
        # As long as possible, so that the last finds the queue full.
        opened.set(max_tokens="4096")
    for opened in pages:
        opened.send("Laugh")
        opened.page.wait_for_timeout(200)
    last = pages[2]
    expect(last.replies.get_by_role("alert")).to_contain_text("The server is busy.")
    expect(last.questions).to_contain_text("Laugh")
    retry = last.replies.get_by_role("button", name="Retry")
    expect(retry).to_contain_text("Retry in")
    expect(retry).to_be_disabled()
    for opened in pages[:2]:
        opened.page.keyboard.press("Escape")
        expect(opened.replies).to_contain_text("Stopped.")
    expect(retry).to_have_text("Retry")
    retry.click()
    expect(last.texts).to_contain_text("haha")
    expect(last.page.get_by_role("alert")).to_have_count(0)
    last.page.keyboard.press("Escape")


def test_a_server_that_cannot_be_reached_is_said_and_the_message_is_kept(
    open_page: Open, narrow: Running
) -> None:
    opened = with_key(open_page, narrow)
    opened.set(max_tokens="5")
    opened.context.set_offline(True)
    opened.send("Still there?")
    expect(opened.replies.get_by_role("alert")).to_contain_text("does not answer")
    opened.send("Hello?")
    expect(opened.questions).to_have_count(2)
    opened.button("Send").wait_for()
    opened.context.set_offline(False)
    # What was not answered is not what the model is shown.
    with opened.page.expect_request("**/v1/chat/completions") as asked:
        opened.replies.last.get_by_role("button", name="Retry").click()
    assert [m["content"] for m in asked.value.post_data_json["messages"]] == ["Hello?"]
    expect(opened.texts.last).to_contain_text("haha")


def test_a_reply_that_breaks_off_stays_as_far_as_it_came(open_page: Open, tmp_path: Path) -> None:
    with serving(tmp_path, "laughing") as running:
        opened = open_page(running)
        opened.set(max_tokens="4096")
        opened.send("Laugh")
        expect(opened.texts).to_contain_text("hahaha")
        running.process.kill()
        running.process.wait()
        expect(opened.replies.get_by_role("alert")).to_contain_text("The connection broke")
        expect(opened.replies).to_contain_text("Incomplete.")
        expect(opened.texts).to_contain_text("hahaha")
        opened.button("Retry").click()
        expect(opened.replies.get_by_role("alert")).to_contain_text("does not answer")


def test_a_conversation_that_grew_too_long_says_what_the_model_does_not_see(
    open_page: Open, narrow: Running
) -> None:
    opened = with_key(open_page, narrow)
    opened.set(max_tokens="5")
    opened.ask("first " * 250)
    opened.ask("second " * 250)
    expect(opened.replies.last).to_contain_text("the oldest 2 messages were not shown")
    opened.send("third " * 900)
    alert = opened.replies.last.get_by_role("alert")
    expect(alert).to_contain_text("shorten it")
    opened.page.keyboard.press("ArrowUp")
    box = opened.page.get_by_label("Edit your message")
    box.fill("third")
    opened.page.keyboard.press("Enter")
    expect(opened.texts).to_have_count(3)
    expect(opened.texts.last).to_contain_text("haha")
    expect(alert).to_have_count(0)


@pytest.mark.parametrize("fault", ["full", "forbidden", "forbidden everywhere"])
def test_a_browser_that_keeps_nothing_can_be_talked_with(
    open_page: Open, narrow: Running, fault: str
) -> None:
    opened = open_page(narrow)
    name = "QuotaExceededError" if fault == "full" else "SecurityError"
    refused = "true" if fault == "forbidden everywhere" else "this === localStorage"
    opened.page.add_init_script(
        f"Storage.prototype.setItem = function (key, value) {{ if ({refused}) "
        f"throw new DOMException('no', '{name}'); this[key] = value; }};"
    )
    opened.page.reload()
    give_key(opened, KEY)
    opened.set(max_tokens="5")
    opened.ask("Laugh")
    expect(opened.page.locator("#history-note")).to_contain_text("kept until the page is closed")
    expect(opened.page.locator("#history-list .title")).to_have_text("Laugh")
