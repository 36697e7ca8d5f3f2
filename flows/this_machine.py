"""What the numbers of a run depend on besides its recipes: the machine, and what is installed."""

import importlib.metadata
import os
import platform
import sys
from typing import Any

from flows.forecast.machine import cpu_model

PACKAGES = ("nanochat-flows", "torch", "prefect", "numpy", "pyarrow", "matplotlib")


def this_machine() -> dict[str, Any]:
    """For the provenance of what is made here; of a stage elsewhere the worker there tells it."""
    return {"hardware": hardware(), "packages": packages()}


def hardware() -> dict[str, Any]:
    """This machine, as far as it can be known without torch."""
    return {
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu": cpu_model(),
        "cpus": os.cpu_count(),
        "python": sys.version.split()[0],
    }


def packages() -> dict[str, str]:
    """Versions of what the numbers depend on, from package metadata."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found
