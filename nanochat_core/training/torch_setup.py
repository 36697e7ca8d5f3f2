"""What a process that trains asks of torch, once."""

import torch

from nanochat_core.config.execution import Execution


def set_up_torch(execution: Execution, device: torch.device) -> None:
    """Threads, TF32 products on CUDA, and deterministic kernels where bits must repeat."""
    torch.set_num_threads(execution.threads)
    # Deterministic algorithms would also fill every new tensor with NaN first, a pass over memory
    # for each output of each kernel that is not compiled.
    setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)  # noqa: B010  untyped
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: RECIPE section 1
        # What has no deterministic form only warns: bits may differ there, but the run goes on.
        torch.use_deterministic_algorithms(execution.reduction == "exact", warn_only=True)
    elif device.type == "cpu" and execution.threads > 1:
        # Compiled CPU code adds embedding gradients atomically: two threads would differ from
        # run to run (LOG.md).
        torch.use_deterministic_algorithms(True)
