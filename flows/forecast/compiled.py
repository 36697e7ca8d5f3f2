"""Whether a training station will find its code compiled: by records, and by what lies here."""

from collections.abc import Collection, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from flows.forecast.machine import Machine
from flows.forecast.nominal import Compiling, Job
from flows.forecast.timings import Timing
from nanochat_core.artifacts.location import user_cache_folder
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.config.execution import Device
from tasks.kernel_cache import kernel_request
from tasks.kernel_key import KernelKey, kernel_key


def how_compiled(
    job: Job,
    store: ArtifactStore,
    timings: Sequence[Timing],
    machine: Machine,
    compiled_before: Collection[str],
) -> Compiling | None:
    """How much a station has to compile; None where code is here, but perhaps not of its shape.

    `compiled_before` are shapes of stations earlier in the same run.
    """
    if job.device_type == "cuda" and not _is_here(machine, job):
        return "second" if job.shape in compiled_before else "cold"
    alike = [t for t in timings if t.torch == _torch() and _is_of(t, job, machine)]
    has_code = has_compiled_code(store, job.execution.device)
    if has_code and any(timing.station == job.station for timing in alike):
        return "warm"
    if job.shape in compiled_before or (has_code and alike):
        return "second"
    return None if has_code else "cold"


def has_compiled_code(store: ArtifactStore, device: Device, root: Path | None = None) -> bool:
    """Whether this machine or the store keeps compiled code of this installation."""
    key = _key(device)
    if ((root or user_cache_folder() / "inductor") / key.short).is_dir():
        return True
    request = kernel_request(key)
    return bool(Manifests(store.files).numbers(request.station, request.fingerprint))


def _is_of(timing: Timing, job: Job, machine: Machine) -> bool:
    return timing.shape == job.shape and timing.machine.is_like(machine, uses_device=True)


def _is_here(machine: Machine, job: Job) -> bool:
    return bool(machine.gpu) and machine.gpu in _key(job.execution.device).device


@cache
def _key(device: Device) -> KernelKey:
    return kernel_key(device)


def _torch() -> str:
    try:
        return version("torch")
    except PackageNotFoundError:
        return ""
