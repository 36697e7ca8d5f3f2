"""The page in a real browser: a conversation, and what can be done with its messages."""

import re
from collections.abc import Iterator

import pytest
from page_tools import MARKS, Open, Opened, opened_browser, page_opener, serving
from playwright.sync_api import Browser, expect
from serving_tools import Running

from nanochat_core.serving.settings import ServerSettings

pytestmark = MARKS


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("page")
    with serving(folder, "adding", "laughing", "writing") as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with page_opener(browser) as opener:
        yield opener


def laughing(open_page: Open, server: Running) -> Opened:
    opened = open_page(server)
    opened.pick("laughing")
    return opened


def test_the_page_answers_in_turn_and_shows_the_calculation(
    open_page: Open, server: Running
) -> None:
    opened = open_page(server)
    opened.ask("What is 6*7?")
    expect(opened.texts).to_have_text("It is 6*7 = 42, truly.")
    expect(opened.page.locator(".tool")).to_have_text("6*7 = 42")
    expect(opened.page.get_by_role("note", name="calculator: 6*7 = 42")).to_be_visible()
    expect(opened.page.locator("#spoken")).to_have_text("It is 6*7 = 42, **truly**.")
    sent = opened.ask("Again")["messages"]
    expect(opened.texts).to_have_count(2)
    assert [message["role"] for message in sent] == ["user", "assistant", "user"]
    assert [part["text"] for part in sent[1]["nanochat_parts"]] == [
        *("It is ", "6*7", "42", ", **truly**.")
    ]
    opened.button("New conversation").click()
    expect(opened.page.locator(".message")).to_have_count(0)
    assert [m["content"] for m in opened.ask("Fresh")["messages"]] == ["Fresh"]
    assert opened.problems == []


@pytest.mark.parametrize("how", ["button", "key"])
def test_stop_ends_the_reply_and_the_next_message_is_answered(
    open_page: Open, server: Running, how: str
) -> None:
    opened = laughing(open_page, server)
    opened.set(max_tokens="4096")
    opened.send("Laugh")
    expect(opened.texts).to_contain_text("hahaha")
    if how == "button":
        opened.button("Stop").click()
    else:
        opened.page.keyboard.press("Escape")
    expect(opened.replies).to_contain_text("Stopped.")
    text = opened.texts.text_content()
    assert len(text or "") < 4096
    opened.set(max_tokens="20")
    sent = opened.ask("More")["messages"]
    assert sent[1]["content"] == text
    expect(opened.texts).to_have_count(2)
    expect(opened.box).to_be_focused()
    assert opened.texts.first.text_content() == text
    assert opened.problems == []


def test_a_reply_that_was_cut_says_so_and_can_be_continued(
    open_page: Open, server: Running
) -> None:
    opened = laughing(open_page, server)
    opened.set(max_tokens="12")
    opened.ask("Laugh")
    expect(opened.replies).to_contain_text("Cut off: the reply reached its length limit.")
    opened.button("Continue").click()
    expect(opened.questions.last).to_contain_text("Please continue.")
    expect(opened.texts).to_have_count(2)
    expect(opened.texts.last).to_contain_text("haha")
    expect(opened.button("Continue")).to_have_count(1)


def test_markdown_is_shown_while_it_comes_and_finished_blocks_stay(
    open_page: Open, server: Running
) -> None:
    opened = open_page(server)
    opened.pick("writing")
    # Whoever redraws a finished block adds a second node with its text.
    opened.page.evaluate(
        """() => {
          window.added = [];
          new MutationObserver((all) => all.forEach((one) => one.addedNodes.forEach((node) =>
            node.parentElement?.className === "prose" && window.added.push(node.tagName))))
            .observe(document.getElementById("log"), { childList: true, subtree: true });
        }"""
    )
    opened.ask("Write")
    prose = opened.texts
    expect(prose.get_by_role("heading", name="Sums")).to_be_visible()
    expect(prose.locator("strong")).to_have_text("bold")
    expect(prose.locator("pre code")).to_have_text("print(6 * 7)")
    expect(prose.get_by_role("listitem")).to_have_text(["one", "two"])
    expect(prose.get_by_role("cell")).to_have_text(["1", "2"])
    assert opened.page.evaluate("window.added").count("P") <= 2
    opened.button("Copy this code").click()
    assert opened.page.evaluate("navigator.clipboard.readText()") == "print(6 * 7)"
    assert opened.problems == []


def test_messages_and_replies_are_copied_as_they_were_written(
    open_page: Open, server: Running
) -> None:
    opened = open_page(server)
    opened.ask("What *is*\n6*7?")
    for name, text in (
        ("Copy this message", "What *is*\n6*7?"),
        ("Copy this reply", "It is 6*7 = 42, **truly**."),
    ):
        opened.page.locator(".exchange").hover()
        opened.button(name).click()
        assert opened.page.evaluate("navigator.clipboard.readText()") == text


def test_an_edited_message_is_answered_anew_and_what_followed_can_be_had_back(
    open_page: Open, server: Running
) -> None:
    opened = open_page(server)
    for text in ("One", "Two", "Three"):
        opened.ask(text)
    second = opened.page.locator(".exchange").nth(1)
    second.hover()
    opened.button("Edit this message", second).click()
    box = opened.page.get_by_label("Edit your message")
    expect(box).to_be_focused()
    opened.page.keyboard.press("Escape")
    expect(opened.questions).to_have_count(3)
    expect(opened.button("Edit this message", second)).to_be_focused()
    opened.page.keyboard.press("Enter")
    box.fill("Deux")
    with opened.page.expect_request("**/v1/chat/completions") as asked:
        opened.page.keyboard.press("Enter")
    said = [m["content"] for m in asked.value.post_data_json["messages"] if m["role"] == "user"]
    assert said == ["One", "Deux"]
    expect(opened.texts).to_have_count(2)
    expect(opened.questions.last).to_contain_text("Deux")
    opened.button("Undo").click()
    expect(opened.questions).to_have_text(["You: One", "You: Two", "You: Three"])
    expect(opened.texts).to_have_count(3)
    assert opened.problems == []


def test_another_reply_has_another_seed_and_the_earlier_one_stays(
    open_page: Open, server: Running
) -> None:
    opened = laughing(open_page, server)
    opened.set(max_tokens="4096", seed="7")
    opened.send("Laugh")
    expect(opened.texts).to_contain_text("haha")
    opened.page.keyboard.press("Escape")
    expect(opened.replies).to_contain_text("seed 7")
    opened.set(max_tokens="5")
    with opened.page.expect_request("**/v1/chat/completions") as asked:
        opened.button("Another reply").click()
    assert asked.value.post_data_json["seed"] != 7
    assert len(asked.value.post_data_json["messages"]) == 1
    expect(opened.replies).to_contain_text("2 of 2")
    expect(opened.replies).to_contain_text("Cut off")
    opened.button("Earlier reply").click()
    expect(opened.replies).to_contain_text("1 of 2")
    expect(opened.replies).to_contain_text("Stopped.")
    expect(opened.replies).to_contain_text("seed 7")
    expect(opened.button("Earlier reply")).to_be_disabled()
    opened.page.reload()
    expect(opened.replies).to_contain_text("1 of 2")
    opened.button("Later reply").click()
    expect(opened.replies).to_contain_text("Cut off")
    assert opened.problems == []


def test_a_reply_can_be_asked_for_with_the_seed_that_made_it(
    open_page: Open, server: Running
) -> None:
    opened = open_page(server)
    opened.set(temperature="1.5", top_k="3")
    first = opened.ask("Hello")
    second = opened.ask("Hello again")
    assert first["seed"] != second["seed"]
    opened.set(temperature="0", top_k="0")
    opened.button(f"seed {first['seed']}").click()
    opened.button("New conversation").click()
    assert opened.ask("Hello") == first
    expect(opened.replies).to_contain_text(f"seed {first['seed']}")


def test_a_reply_or_an_exchange_is_deleted_and_undone(open_page: Open, server: Running) -> None:
    opened = open_page(server)
    opened.ask("One")
    opened.ask("Two")
    last = opened.page.locator(".exchange").last
    opened.button("Delete this reply", last).click()
    expect(opened.texts).to_have_count(1)
    expect(opened.box).to_be_focused()
    opened.button("Get a reply").click()
    expect(opened.texts).to_have_count(2)
    first = opened.page.locator(".exchange").first
    first.hover()
    opened.button("Delete this message and its reply", first).click()
    expect(opened.questions).to_have_text(["You: Two"])
    assert [m["content"] for m in opened.ask("Three")["messages"] if m["role"] == "user"] == [
        *("Two", "Three")
    ]
    first.hover()
    opened.button("Delete this message and its reply", first).click()
    opened.button("Undo").click()
    expect(opened.questions).to_have_text(["You: Two", "You: Three"])
    assert opened.problems == []


def test_the_controls_are_sent_and_go_back_to_the_defaults_of_the_server(
    open_page: Open, server: Running
) -> None:
    opened = open_page(server)
    names = ("temperature", "top_p", "top_k", "max_tokens")
    given = ServerSettings()
    usual = dict(zip(names, (given.temperature, 1, given.top_k, given.max_tokens), strict=True))
    sent = opened.ask("Hello")
    assert {name: sent[name] for name in names} == usual
    opened.set(temperature="1.25", top_p="0.5", top_k="7", max_tokens="9", seed="0")
    sent = opened.ask("Hello")
    assert {name: sent[name] for name in (*names, "seed")} == {
        **{"temperature": 1.25, "top_p": 0.5, "top_k": 7, "max_tokens": 9, "seed": 0}
    }
    expect(opened.page.locator("#tune")).to_have_class("icon changed")
    opened.button("Settings").click()
    opened.button("Reset to defaults").click()
    opened.button("Close settings").click()
    sent = opened.ask("Hello")
    assert {name: sent[name] for name in names} == usual
    limits = given.limits
    for name, most in (
        *(("temperature", limits.max_temperature), ("top_k", limits.max_top_k)),
        ("max_tokens", limits.max_tokens),
    ):
        assert float(opened.page.locator(f"#{name}").get_attribute("max") or 0) == most
    assert opened.problems == []


def test_a_setting_that_cannot_be_is_shown_before_anything_is_sent(
    open_page: Open, server: Running
) -> None:
    opened = open_page(server)
    opened.button("Settings").click()
    opened.page.locator("#temperature").fill("9")
    opened.page.keyboard.press("Escape")
    opened.send("Hello")
    expect(opened.page.locator("#temperature")).to_be_focused()
    opened.page.locator("#temperature").fill("1")
    opened.page.keyboard.press("Escape")
    expect(opened.questions).to_have_count(0)
    expect(opened.box).to_have_value("Hello")
    opened.page.keyboard.press("Enter")
    expect(opened.texts).to_have_count(1)


def test_a_conversation_that_is_left_keeps_what_was_said_until_then(
    open_page: Open, server: Running
) -> None:
    opened = laughing(open_page, server)
    opened.set(max_tokens="4096")
    opened.send("Laugh")
    expect(opened.texts).to_contain_text("hahaha")
    opened.button("New conversation").click()
    expect(opened.button("Send")).to_be_visible()
    expect(opened.page).to_have_title("nanochat")
    opened.page.locator("#history-list .title", has_text="Laugh").click()
    expect(opened.texts).to_contain_text("hahaha")
    expect(opened.replies).to_contain_text("Stopped.")
    expect(opened.page).to_have_title(re.compile("Laugh"))
    assert opened.problems == []


def test_a_conversation_deleted_while_it_grows_stays_deleted(
    open_page: Open, server: Running
) -> None:
    opened = laughing(open_page, server)
    opened.set(max_tokens="4096")
    opened.send("Laugh")
    expect(opened.texts).to_contain_text("hahaha")
    opened.page.locator(".item").hover()
    opened.button("Delete Laugh").click()
    opened.page.wait_for_timeout(300)
    expect(opened.page.locator(".item")).to_have_count(0)
    opened.button("Undo").click()
    expect(opened.questions).to_contain_text("Laugh")
    assert opened.problems == []
