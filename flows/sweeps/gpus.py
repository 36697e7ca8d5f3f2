"""Which GPUs belong to which of several points that are made side by side."""

import re
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path

from flows.checks import has_gpu
from flows.parameters import ResolvedRun
from flows.presets import JOB_STATIONS
from nanochat_core.errors import ConfigError

VARIABLE = "CUDA_VISIBLE_DEVICES"
_DEVICE = re.compile(r"^nvidia(\d+)$")


def gpus_of_jobs(
    runs: Sequence[ResolvedRun], jobs: int, environ: Mapping[str, str]
) -> list[tuple[str, ...]]:
    """The GPUs of each of `jobs` points at a time; none anywhere on a machine without.

    Raises ConfigError where there are not enough for that many, or they cannot be made so.
    """
    if any("memory://" in run.store_url for run in runs):
        raise ConfigError(
            f"--jobs {jobs} points are made in processes of their own, and a store in memory is "
            "of one process; use --jobs 1, or a store in a folder"
        )
    if any(_most(run, "nodes") > 1 for run in runs):
        raise ConfigError("points that need several machines are made one at a time; use --jobs 1")
    per_point = max(_most(run, "ranks") for run in runs)
    gpus = visible_gpus(environ)
    is_hidden = VARIABLE in environ and not gpus
    if not has_gpu() or is_hidden or per_point == 0:
        return [()] * jobs
    if len(gpus) < jobs * per_point:
        raise ConfigError(
            f"--jobs {jobs} points of {per_point} GPU(s) each need {jobs * per_point}, and this "
            f"machine shows {len(gpus)} ({', '.join(gpus) or 'none'}); use --jobs "
            f"{max(len(gpus) // per_point, 1)}, or name GPUs in {VARIABLE}"
        )
    return [gpus[job * per_point : (job + 1) * per_point] for job in range(jobs)]


def visible_gpus(environ: Mapping[str, str], nodes: Path = Path("/dev")) -> tuple[str, ...]:
    """Names of the GPUs that this process may use, as the variable has them.

    What stands behind a name of no GPU (-1, or nothing) is hidden, as the CUDA driver has it.
    """
    if VARIABLE in environ:
        names = [name.strip() for name in environ[VARIABLE].split(",")]
        return tuple(takewhile(lambda name: name and not name.startswith("-"), names))
    found = [_DEVICE.match(path.name) for path in nodes.glob("nvidia*")]
    return tuple(str(number) for number in sorted(int(match[1]) for match in found if match))


def _most(run: ResolvedRun, field: str) -> int:
    """The largest number that a station which is made here with torch asks for."""
    executions = run.preset.executions
    here = [name for name in JOB_STATIONS if name in run.stations and name not in run.pools]
    used = [getattr(executions, name) for name in here]
    return max(
        (getattr(each, field) for each in used if each.device in ("auto", "cuda")), default=0
    )
