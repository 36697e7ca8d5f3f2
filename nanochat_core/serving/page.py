"""The chat page: one file beside this one, and the policy that lets it do what it does alone."""

import base64
import hashlib
import re
from dataclasses import dataclass
from importlib.resources import files

PAGE_FILE = "page.html"


@dataclass(frozen=True)
class Page:
    """HTML and the Content-Security-Policy that goes with it."""

    html: str
    policy: str


def load_page() -> Page:
    """Read the page; its one style and one script are allowed by their hashes."""
    html = files(__package__).joinpath(PAGE_FILE).read_text(encoding="utf-8")
    allowed = {tag: _hash_of(tag, html) for tag in ("script", "style")}
    policy = (
        "default-src 'none'",
        f"script-src '{allowed['script']}'",
        f"style-src '{allowed['style']}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
    return Page(html, "; ".join(policy))


def _hash_of(tag: str, html: str) -> str:
    found = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
    assert len(found) == 1, f"{PAGE_FILE} has {len(found)} <{tag}> elements, expected one"
    digest = hashlib.sha256(found[0].encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
