"""The attention backends by name."""

from collections.abc import Callable

import torch

from nanochat_core.errors import UnknownNameError
from nanochat_core.model.attention import Backend
from nanochat_core.model.backends.fa3 import open_fa3
from nanochat_core.model.backends.fa4 import open_fa4
from nanochat_core.model.backends.flex import open_flex
from nanochat_core.model.backends.sdpa import open_sdpa

OPENERS: dict[str, Callable[[torch.device], Backend]] = {
    "fa3": open_fa3,
    "fa4": open_fa4,
    "flex": open_flex,
    "sdpa": open_sdpa,
}
"""In the order in which equally fast ones are taken."""


def open_backend(name: str, device: torch.device) -> Backend:
    """Get a backend ready on a device; the same function each time, so that graphs can share it.

    Raises UnavailableError where it cannot run, and whatever its library raises when it loads.
    Whether it computes the right thing is for `trial` to say.
    """
    if name not in OPENERS:
        raise UnknownNameError(
            f"no attention backend is called {name!r}; there are {', '.join(OPENERS)}"
        )
    return OPENERS[name](device)
