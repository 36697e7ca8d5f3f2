"""The chat page in a real browser: one server with several scripted models, pages that tell all."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright
from serving_tools import LAUGH, Running, started

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.inference.loading import save_model
from nanochat_core.tokenizer.recipe import SPLIT_PATTERN
from nanochat_core.tokenizer.tokenizer import SPECIAL_TOKENS, Tokenizer
from tests.inference.scripted import bigram_model, chain

BROWSER = next(
    (
        found
        for n in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(n))
    ),
    None,
)
NEEDS_BROWSER = pytest.mark.skipif(
    BROWSER is None, reason="no chromium or google-chrome on this machine"
)
MARKS = [pytest.mark.browser, NEEDS_BROWSER]
ADDING = (
    *("assistant_start", "It is ", "python_start", "6", "*", "7", "python_end"),
    *("output_end", ", **truly**.", "assistant_end"),
)
"""The calculator's 42 comes after `python_end`."""
WRITING = (
    *("assistant_start", "# Sums\n\n", "A **bold** word.\n\n", "```python\nprint(6 * 7)\n```\n\n"),
    *("- one\n- two\n\n", "| a | b |\n|---|--:|\n| 1 | 2 |\n", "assistant_end"),
)
EVIL = (
    *("assistant_start", "<img src=x onerror=alert(1)>\n\n", "<script>alert(2)</script>\n\n"),
    *("[x](javascript:alert(3)) ![y](http://evil.example/y)\n\n", "assistant_end"),
)
HEBREW = (
    *("assistant_start", "שלום **עולם**: ", "python_start", "6", "*", "7", "python_end"),
    *("output_end", "\n\n- `x = 1` אחד\n\n", "```python\nprint(6 * 7)\n```\n", "assistant_end"),
)
YES = ("assistant_start", "y", "e", "s", "assistant_end")
SCRIPTS: dict[str, tuple[str | int, ...]] = {
    "adding": ADDING,
    "laughing": LAUGH,
    "writing": WRITING,
    "evil": EVIL,
    "yes": YES,
    "hebrew": HEBREW,
}
"""What the models say, by their aliases; the one that laughs never ends by itself."""
PATIENCE_MS = 20_000
"""A model that must be loaded first takes seconds."""
_SPECIAL_NAMES = {name.strip("<|>") for name in SPECIAL_TOKENS}


def make_store(folder: Path, names: tuple[str, ...], **changes: Any) -> str:
    """A store with these models as aliases; returns its URL."""
    store = ArtifactStore(str(folder / "store"))
    for name in names:
        words = [s for s in SCRIPTS[name] if isinstance(s, str) and _is_word(s)]
        ranks = [bytes([i]) for i in range(256)] + [word.encode() for word in words]
        tokenizer = Tokenizer(ranks, SPLIT_PATTERN)
        ids = {word: 256 + i for i, word in enumerate(words)}
        steps = [ids.get(step, step) for step in SCRIPTS[name]]
        model = bigram_model(tokenizer, chain(tokenizer, *steps), **changes)
        tokenizer.save(folder / name / "tokenizer")
        save_model(model, folder / name / "model", {})
        made = _publish(store, folder / name / "tokenizer", "tokenizer", name)
        store.set_alias(name, _publish(store, folder / name / "model", "sft", name, tokenizer=made))
    return store.url


def _is_word(step: str) -> bool:
    return len(step) > 1 and step not in _SPECIAL_NAMES


def _publish(
    store: ArtifactStore, folder: Path, station: str, name: str, **inputs: ArtifactRef
) -> ArtifactRef:
    digests = {kind: ref.digest for kind, ref in inputs.items()}
    request = Request(station=station, code_version=1, recipe={"name": name}, inputs=digests)
    output = StageOutput(files={path.name: "result" for path in folder.iterdir()})
    return store.publish(request, folder, output, input_refs=inputs, provenance={})


@contextmanager
def serving(
    folder: Path,
    *names: str,
    arguments: tuple[str, ...] = (),
    changes: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A server of these models; the first answers who names none."""
    url = make_store(folder, names, **{"sequence_len": 1000, **(changes or {})})
    first = ["--store", url, "--model", names[0], "--max-loaded", "4", "--replicas", "1"]
    with started([*first, *arguments], names[0], **options) as running:
        yield running


class Opened:
    """A page that shows no error of its own and asks nobody but its server."""

    def __init__(self, browser: Browser, server: Running, **context: Any) -> None:
        self.context = browser.new_context(**context)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.context.set_default_timeout(PATIENCE_MS)
        self.page: Page = self.context.new_page()
        self.problems: list[str] = []
        self._url = server.url
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("console", lambda line: self.problems.append(line.text))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.on("request", lambda request: self._check(request.url))
        self.page.goto(server.url)

    def _check(self, url: str) -> None:
        if not url.startswith((self._url, "data:", "blob:")):
            self.problems.append(f"asked {url}")

    @property
    def box(self) -> Locator:
        """Where a message is written."""
        return self.page.get_by_label("Your message", exact=True)

    @property
    def replies(self) -> Locator:
        """The replies, each with its buttons."""
        return self.page.locator(".message.assistant")

    @property
    def texts(self) -> Locator:
        """What the replies say."""
        return self.page.locator(".message.assistant .prose")

    @property
    def questions(self) -> Locator:
        """What the person said."""
        return self.page.locator(".message.user")

    def button(self, name: str, within: Locator | None = None) -> Locator:
        """A button by its name, shown or waiting for the pointer."""
        return (within or self.page).get_by_role("button", name=name, exact=True)

    def send(self, text: str) -> None:
        """Write and send."""
        self.box.fill(text)
        self.page.keyboard.press("Enter")

    def ask(self, text: str) -> dict[str, Any]:
        """Send, and wait for the end of the reply; returns what was asked of the server."""
        with self.page.expect_request("**/v1/chat/completions") as asked:
            self.send(text)
        self.button("Send").wait_for()
        body: dict[str, Any] = asked.value.post_data_json
        return body

    def pick(self, name: str, label: str = "Model") -> None:
        """Choose a model."""
        self.page.get_by_label(label, exact=True).select_option(name)

    def set(self, **values: str) -> None:
        """Fill in settings by the ids of their controls."""
        self.button("Settings").click()
        for name, value in values.items():
            self.page.locator(f"#settings #{name}").fill(value)
        self.button("Close settings").click()


Open = Callable[..., Opened]


@contextmanager
def opened_browser() -> Iterator[Browser]:
    """A browser for the tests of one file: a longer life would hold the event loop of others."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def page_opener(browser: Browser) -> Iterator[Open]:
    """Opens pages, and closes them at the end of a test."""
    pages: list[Opened] = []

    def _open(server: Running, **context: Any) -> Opened:
        pages.append(Opened(browser, server, **context))
        return pages[-1]

    try:
        yield _open
    finally:
        for opened in pages:
            opened.context.close()
