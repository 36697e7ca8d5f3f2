"""A page with its pictures inside, for viewers that cannot open the files beside it."""

import base64
from collections.abc import Iterable
from pathlib import Path


def with_images(page: str, folder: Path, names: Iterable[str]) -> str:
    """The Markdown with the PNG files of these names, below `folder`, in place of their links."""
    for name in names:
        if name.endswith(".png") and f"]({name})" in page:
            image = base64.b64encode((folder / name).read_bytes()).decode("ascii")
            page = page.replace(f"]({name})", f"](data:image/png;base64,{image})")
    return page
