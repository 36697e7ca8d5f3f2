"""The page's choice of models, and two of them side by side."""

from collections.abc import Iterator

import pytest
from page_tools import MARKS, Open, Opened, opened_browser, page_opener, serving
from playwright.sync_api import Browser, Request, expect
from serving_tools import Running

pytestmark = MARKS


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("models")
    with serving(folder, "yes", "adding", "laughing") as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with page_opener(browser) as opener:
        yield opener


def comparing(open_page: Open, server: Running, **context) -> Opened:
    """A page that asks two models: the one that says yes, and the one that adds."""
    opened = open_page(server, **context)
    opened.pick("yes")
    opened.button("Compare two models").click()
    opened.pick("adding", "Second model")
    return opened


def both(opened: Opened, text: str) -> list[dict]:
    """Send to two models; what each was asked, in the order of the page."""
    bodies = []

    def note(request: Request) -> None:
        if request.post_data:
            bodies.append(request.post_data_json)

    opened.page.on("request", note)
    opened.ask(text)
    opened.page.remove_listener("request", note)
    return bodies


def test_every_model_can_be_picked_names_first_and_is_loaded_on_demand(
    open_page: Open, server: Running
) -> None:
    opened = open_page(server)
    picker = opened.page.get_by_label("Model", exact=True)
    expect(picker).to_have_value("yes")
    groups = picker.locator("optgroup")
    assert [g.get_attribute("label") for g in groups.all()] == ["Names", "Models of the store"]
    names = [o.get_attribute("value") for o in groups.first.locator("option").all()]
    assert sorted(names) == ["adding", "laughing", "yes"]
    assert "sft/" in (groups.last.text_content() or "")
    opened.pick("adding")
    opened.send("What is 6*7?")
    expect(opened.page.get_by_text("Loading the model adding…").first).to_be_visible()
    expect(opened.texts).to_have_text("It is 6*7 = 42, truly.")
    # It stays: no loading is told the second time, and the page remembers the choice.
    assert opened.ask("Again")["model"] == "adding"
    opened.page.reload()
    expect(picker).to_have_value("adding")
    assert opened.problems == []


def test_two_models_answer_the_same_prompt_with_the_same_seed(
    open_page: Open, server: Running
) -> None:
    opened = comparing(open_page, server)
    one, other = both(opened, "What is 6*7?")
    assert (one.pop("model"), other.pop("model")) == ("yes", "adding")
    assert one == other
    expect(opened.texts).to_have_text(["yes", "It is 6*7 = 42, truly."])
    expect(opened.page.locator(".reply-name")).to_have_text(["yes", "adding"])
    left, right = (reply.bounding_box() for reply in opened.replies.all())
    assert left
    assert right
    assert left["y"] == right["y"]
    assert left["x"] + left["width"] < right["x"]
    # Each goes on from what it said itself.
    bodies = both(opened, "Again")
    assert [body["messages"][1]["content"] for body in bodies] == ["yes", "It is , **truly**."]
    assert opened.problems == []


def test_both_replies_grow_at_once_and_stop_together(open_page: Open, server: Running) -> None:
    opened = open_page(server)
    opened.set(max_tokens="4096")
    opened.pick("laughing")
    opened.button("Compare two models").click()
    opened.pick("laughing", "Second model")
    opened.send("Laugh")
    expect(opened.texts.first).to_contain_text("haha")
    expect(opened.texts.last).to_contain_text("haha")
    opened.page.keyboard.press("Escape")
    expect(opened.replies.first).to_contain_text("Stopped.")
    expect(opened.replies.last).to_contain_text("Stopped.")
    assert opened.problems == []


def test_a_comparison_ends_with_the_one_that_is_kept(open_page: Open, server: Running) -> None:
    opened = comparing(open_page, server)
    both(opened, "What is 6*7?")
    opened.button("Another reply of both").click()
    expect(opened.button("Go on with this one")).to_have_count(2)
    opened.button("Go on with this one").last.click()
    expect(opened.texts).to_have_text("It is 6*7 = 42, truly.")
    expect(opened.page.get_by_label("Second model")).to_be_hidden()
    sent = opened.ask("Again")
    assert (sent["model"], len(sent["messages"])) == ("adding", 3)
    assert opened.problems == []


def test_a_comparison_is_there_again_after_a_reload(open_page: Open, server: Running) -> None:
    opened = comparing(open_page, server)
    both(opened, "What is 6*7?")
    opened.page.reload()
    expect(opened.texts).to_have_text(["yes", "It is 6*7 = 42, truly."])
    expect(opened.page.get_by_label("Second model")).to_have_value("adding")
    opened.button("Delete both replies").click()
    expect(opened.replies).to_have_count(0)
    opened.button("Get a reply").click()
    expect(opened.texts).to_have_text(["yes", "It is 6*7 = 42, truly."])


def test_a_phone_shows_one_reply_above_the_other(open_page: Open, server: Running) -> None:
    opened = comparing(open_page, server, viewport={"width": 390, "height": 844})
    both(opened, "What is 6*7?")
    above, below = (reply.bounding_box() for reply in opened.replies.all())
    assert above
    assert below
    assert above["x"] == below["x"]
    assert above["y"] + above["height"] < below["y"]
    assert opened.page.evaluate("document.documentElement.scrollWidth") == 390
    assert opened.problems == []


def test_a_model_that_is_gone_is_said_and_another_can_answer(
    open_page: Open, server: Running
) -> None:
    opened = open_page(server)
    expect(opened.page.get_by_label("Model", exact=True)).to_have_value("yes")
    opened.page.evaluate("document.querySelector('#model option').value = 'gone'")
    opened.pick("gone")
    opened.send("Hello")
    expect(opened.page.get_by_role("alert").filter(has_text="gone")).to_be_visible()
    opened.pick("yes")
    opened.button("Retry").click()
    expect(opened.texts).to_have_text("yes")
