"""The two update functions, eager or compiled, and the numbers in the form each of them likes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from nanochat_core.optim.adamw import Scalar, adamw_update
from nanochat_core.optim.muon import muon_update

_SHAPES_COMPILED = 64


@dataclass(frozen=True)
class Kernels:
    """How updates are run. `scalar` wraps every number that changes from step to step."""

    adamw: Callable[..., Any]
    muon: Callable[..., Any]
    scalar: Callable[[float], Scalar]


def make_kernels(*, compiled: bool) -> Kernels:
    """Eager kernels with plain numbers, or compiled ones that take numbers as 0-d tensors.

    A plain number would be compiled in, and the next step's rate would compile everything again.
    """
    if not compiled:
        return Kernels(adamw_update, muon_update, float)
    # One compilation a shape: more than the default of 8 when a process trains several models.
    limit = max(_SHAPES_COMPILED, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.recompile_limit = limit
    return Kernels(
        torch.compile(adamw_update, dynamic=False, fullgraph=True),
        torch.compile(muon_update, dynamic=False, fullgraph=True),
        lambda value: torch.tensor(value, dtype=torch.float32),
    )
