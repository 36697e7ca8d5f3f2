"""What processes that compute find in their environment, unless somebody has set it otherwise."""

from collections.abc import Mapping

DEFAULTS = {
    # Idle OpenMP threads must not spin on a machine with as many ranks as cores.
    "OMP_WAIT_POLICY": "passive",
    # Without a workspace of fixed size cuBLAS may sum in another order each time.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    # glibc gives large blocks back to the system at once, and every step's activations then fault
    # in page by page: a sixth of the time of a step on a CPU (LOG.md).
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}


def process_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of this process, and the defaults that it does not name."""
    return {**DEFAULTS, **inherited}
