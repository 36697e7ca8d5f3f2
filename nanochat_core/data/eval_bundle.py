"""stub"""
from pathlib import Path


def build_heldout_bundle(shards: Path, output: Path, *, seed: int) -> Path:
    """Write a bundle in the layout of CORE's from validation documents; returns `output`."""
    raise NotImplementedError
