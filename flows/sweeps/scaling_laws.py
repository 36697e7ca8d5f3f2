"""Scaling laws: for each budget of FLOPs models of several depths, and what fits them best."""

from flows.sweeps.making import Sweep
from flows.sweeps.sweep_flow import sweep_flow
from nanochat_core.artifacts.types import ArtifactRef


def follow(sweep: Sweep) -> ArtifactRef:
    """Models of several depths for each FLOP budget: the best ones, and the laws they follow."""
    sweep.make_points()
    return sweep.write_results()


scaling_laws = sweep_flow("scaling_laws", follow)
