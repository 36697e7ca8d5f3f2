"""A miniseries: models of several depths, so that an idea is judged at more than one size."""

from flows.sweeps.making import Sweep
from flows.sweeps.sweep_flow import sweep_flow
from nanochat_core.artifacts.types import ArtifactRef


def follow(sweep: Sweep) -> ArtifactRef:
    """Models of several depths through pretraining and evaluation: one table, and plots."""
    sweep.make_points()
    return sweep.write_results()


miniseries = sweep_flow("miniseries", follow)
