"""The flow around a sweep: its parameters stand at the top level, as commands and forms need."""

from collections.abc import Callable
from typing import Any

from prefect import Flow

from flows.line_flow import documentation_of, signature_of
from flows.sweeps.making import Sweep
from flows.sweeps.parameters import PARAMETERS, parse_sweep
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.report.sweeps.recipe import SweepKind

Follow = Callable[[Sweep], ArtifactRef]


def sweep_flow(kind: SweepKind, follow: Follow) -> Flow[..., ArtifactRef]:
    """A flow that takes the parameters of a kind of sweep by name and runs `follow` with it."""

    def run(**values: Any) -> ArtifactRef:
        return follow(Sweep(parse_sweep(kind, values)))

    run.__name__, run.__module__ = kind, follow.__module__
    # Prefect learns names, types and defaults from the signature, and help from the docstring.
    run.__signature__ = signature_of(PARAMETERS[kind])  # type: ignore[attr-defined]
    run.__doc__ = documentation_of(follow.__doc__ or "", PARAMETERS[kind])
    return Flow(
        run,
        name=kind,
        description=follow.__doc__,
        flow_run_name="{preset}",
        persist_result=False,
    )
