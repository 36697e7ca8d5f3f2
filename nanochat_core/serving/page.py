"""The chat page: its sources of the folder beside this file, put together to one HTML page.

One style and one script stand inside the page, each allowed by its hash, so that the policy can
forbid everything else: other hosts, other scripts, and HTML made of strings (Trusted Types).
"""

import base64
import hashlib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

FOLDER = "page"
INDEX_FILE = "index.html"
STYLE_FILES = ("style.css", "messages.css", "panels.css")
SCRIPT_FILES = (
    *("dom.js", "client.js", "markdown_inline.js", "markdown.js", "history.js"),
    *("exchanges.js", "models.js", "settings.js", "reply.js", "log.js"),
    *("chat.js", "sidebar.js", "keys.js", "main.js"),
)
"""In the order of the script; all share one scope, which nothing outside can see."""


@dataclass(frozen=True)
class Page:
    """HTML and the Content-Security-Policy that goes with it."""

    html: str
    policy: str


@cache
def load_page() -> Page:
    """Put the page together; once for a server."""
    style = "".join(map(_read, STYLE_FILES))
    script = f'(() => {{\n"use strict";\n{"".join(map(_read, SCRIPT_FILES))}}})();\n'
    html = _filled(_filled(_read(INDEX_FILE), "style", style), "script", script)
    policy = (
        "default-src 'none'",
        f"script-src '{_hash_of(script)}'",
        f"style-src '{_hash_of(style)}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
    return Page(html, "; ".join(policy))


def _read(name: str) -> str:
    return files(__package__).joinpath(FOLDER, name).read_text(encoding="utf-8")


def _filled(html: str, tag: str, content: str) -> str:
    place = f"<{tag}></{tag}>"
    assert html.count(place) == 1, f"{INDEX_FILE} has {html.count(place)} {place}, expected one"
    assert f"</{tag}" not in content, f"a source of the <{tag}> would end it: it has </{tag}"
    return html.replace(place, f"<{tag}>{content}</{tag}>")


def _hash_of(content: str) -> str:
    digest = hashlib.sha256(content.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
