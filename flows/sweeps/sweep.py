"""A sweep: runs that differ in any fields of their recipes, and what the differences make."""

from flows.sweeps.making import Sweep
from flows.sweeps.sweep_flow import sweep_flow
from nanochat_core.artifacts.types import ArtifactRef


def follow(sweep: Sweep) -> ArtifactRef:
    """Runs with all combinations of the given values of fields: one table, and plots."""
    sweep.make_points()
    return sweep.write_results()


sweep = sweep_flow("sweep", follow)
