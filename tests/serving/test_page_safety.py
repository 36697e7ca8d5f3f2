"""The page runs nothing but itself: no text of whoever becomes a script, an image, or a request."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from page_tools import EVIL, NEEDS_BROWSER, Open, Opened, opened_browser, page_opener, serving
from playwright.sync_api import Browser, expect
from serving_tools import Running

from nanochat_core.serving.page import load_page

ATTACKS = (
    "<img src=x onerror=alert(1)>",
    "<script>alert(2)</script>",
    "\"'><svg onload=alert(3)>",
    "[click](javascript:alert(4))",
    "![seen](http://evil.example/seen)",
    "</textarea></option></select><iframe srcdoc='<script>parent.alert(5)</script>'>",
    "\ue0009\ue001",
)
BAD = "script, img, iframe, object, embed, link, style, base, form, [href^=javascript], [onerror]"
"""What none of those texts may become."""


def test_the_page_is_one_file_that_asks_for_no_other() -> None:
    shown = load_page()
    assert shown.html.count("<script") == shown.html.count("<style") == 1
    assert "default-src 'none'" in shown.policy
    assert "'unsafe" not in shown.policy
    outside = shown.html.replace("http://www.w3.org/2000/svg", "")
    for sign in ("<link rel=stylesheet", "@import", "url(", 'src="http', 'href="http', " style="):
        assert sign not in outside, sign
    assert "innerHTML" not in shown.html


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with opened_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with serving(tmp_path_factory.mktemp("safety"), "evil") as running:
        yield running


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Open]:
    with page_opener(browser) as opener:
        yield opener


def is_harmless(opened: Opened) -> None:
    """Nothing of the texts became an element, and nothing ran or was asked for."""
    found = opened.page.evaluate(
        """(bad) => [...document.querySelectorAll(bad)]
          .filter((it) => it.closest("#log, #history, #models, #toast, #error"))
          .map((it) => it.outerHTML)""",
        BAD,
    )
    assert found == []
    assert opened.problems == []


@pytest.mark.browser
@NEEDS_BROWSER
def test_what_a_person_or_a_model_says_is_text(open_page: Open, server: Running) -> None:
    opened = open_page(server)
    for attack in ATTACKS:
        opened.ask(attack)
        expect(opened.questions.last).to_have_text(f"You: {attack}")
    assert isinstance(EVIL[1], str)
    expect(opened.texts.last).to_contain_text(EVIL[1].strip())
    expect(opened.texts.last).to_contain_text("<script>alert(2)</script>")
    expect(opened.page.locator("#history-list .title")).to_have_text(ATTACKS[0])
    opened.page.wait_for_timeout(200)
    is_harmless(opened)


@pytest.mark.browser
@NEEDS_BROWSER
def test_the_name_of_a_model_is_text(open_page: Open, server: Running) -> None:
    opened = open_page(server)
    body = opened.page.request.get(f"{server.url}v1/models").json()
    for model, attack in zip(body["data"], ATTACKS, strict=False):
        facts = {**model["nanochat"], "target": attack, "loaded": False}
        model |= {"id": attack, "nanochat": facts}
    opened.page.route("**/v1/models", lambda route: route.fulfill(json=body))
    opened.page.reload()
    picker = opened.page.get_by_label("Model", exact=True)
    picker.select_option(ATTACKS[0])
    opened.send("Hello")
    alert = opened.replies.get_by_role("alert")
    expect(alert).to_be_visible()
    expect(alert).to_contain_text("<img")
    opened.problems = [line for line in opened.problems if "404" not in line]
    is_harmless(opened)


@pytest.mark.browser
@NEEDS_BROWSER
def test_an_imported_conversation_is_text(open_page: Open, server: Running, tmp_path: Path) -> None:
    opened = open_page(server)
    opened.page.get_by_text("Export and import").click()
    opened.ask("Hello")
    with opened.page.expect_download() as whole:
        opened.button("Export all as JSON").click()
    exported = json.loads(Path(whole.value.path()).read_text(encoding="utf-8"))
    [conversation] = exported["conversations"]
    everything = "\n\n".join(ATTACKS)
    conversation |= {"id": "attack", "title": ATTACKS[0]}
    question, reply = conversation["messages"]
    question["content"] = reply["content"] = everything
    reply |= {"model": ATTACKS[2], "note": ATTACKS[0], "finish": ATTACKS[1]}
    reply["nanochat_parts"] = [
        {"kind": kind, "text": everything} for kind in ("text", "python", "python_output")
    ]
    file = tmp_path / "attack.json"
    file.write_text(json.dumps(exported), encoding="utf-8")
    opened.page.get_by_label("File to import").set_input_files(file)
    opened.page.locator(".title", has_text="<img").click()
    expect(opened.replies).to_contain_text(ATTACKS[1])
    expect(opened.page.locator(".tool")).to_contain_text("onerror")
    opened.page.wait_for_timeout(200)
    is_harmless(opened)


@pytest.mark.browser
@NEEDS_BROWSER
def test_even_an_element_that_got_in_could_do_nothing(open_page: Open, server: Running) -> None:
    opened = open_page(server)
    done = opened.page.evaluate(
        """async () => {
          const tried = [];
          const attempt = async (name, action) => {
            try { await action(); tried.push(name); } catch { /* as it should be */ }
          };
          await attempt("HTML of a string", () => { document.body.innerHTML = "<b>x</b>"; });
          await attempt("another host", () => fetch("http://127.0.0.1:9/"));
          const script = document.createElement("script");
          await attempt("a script", () => { script.textContent = "window.ran = true"; });
          document.body.append(script);
          return [...tried, ...(window.ran ? ["ran"] : [])];
        }"""
    )
    assert done == []
    assert opened.problems
