"""Single sources of the chat page in a real browser, without a server."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, Route, sync_playwright

import nanochat_core.serving as serving

FOLDER = Path(serving.__file__).parent / "page"
ADDRESS = "http://page.test/"
"""No host has this name: the browser is given its page by the test."""
BROWSER = next(
    (
        found
        for n in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(n))
    ),
    None,
)


@contextmanager
def browser() -> Iterator[Browser]:
    """A browser without a window."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


class Sources:
    """A page that runs these sources, and what went wrong on it, requests included."""

    def __init__(self, context: BrowserContext, *names: str) -> None:
        self.problems: list[str] = []
        self.page: Page = context.new_page()
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("dialog", lambda dialog: self.problems.append(dialog.message))
        self.page.route("**/*", self._answer)
        self.page.goto(ADDRESS)
        for name in names:
            source = (FOLDER / name).read_text(encoding="utf-8")
            self.page.add_script_tag(content=f'"use strict";\n{source}')

    def _answer(self, route: Route) -> None:
        if route.request.url == ADDRESS:
            route.fulfill(body="<!doctype html><main></main>", content_type="text/html")
        else:
            self.problems.append(f"asked {route.request.url}")
            route.abort()
