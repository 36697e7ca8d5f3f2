"""One job on a GPU at a time, wherever the limit `gpu` was set up by `nanochat bootstrap`."""

from collections.abc import Iterator
from contextlib import contextmanager

from prefect.concurrency.sync import concurrency

from flows.checks import has_gpu
from nanochat_core.config.execution import Execution

LIMIT = "gpu"
LEASE_SECONDS = 60.0


@contextmanager
def gpu_slot(execution: Execution) -> Iterator[None]:
    """Hold a slot of the limit while a stage computes on a GPU; nothing for any other.

    Without the limit there is nothing to wait for, and a renewal that fails must not cost hours of
    training: the worker takes few runs at a time, too.
    """
    if execution.device not in ("auto", "cuda") or not has_gpu():
        yield
        return
    with concurrency(
        LIMIT, occupy=1, lease_duration=LEASE_SECONDS, raise_on_lease_renewal_failure=False
    ):
        yield
