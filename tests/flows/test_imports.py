"""Flows and tasks never reach torch: the command line starts jobs, it does not become one."""

import pkgutil
import subprocess
import sys

import pytest

import flows
import tasks

MODULES = [
    f"{package.__name__}.{module.name}"
    for package in (flows, tasks)
    for module in pkgutil.iter_modules(package.__path__)
]


@pytest.mark.prefect
def test_no_module_of_flows_or_tasks_loads_torch() -> None:
    script = f"import sys, {', '.join(MODULES)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_every_station_has_its_task() -> None:
    from flows.presets import STATIONS

    assert {f"tasks.{station}" for station in STATIONS} <= set(MODULES)
