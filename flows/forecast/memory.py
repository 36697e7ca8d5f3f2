"""The most memory that one process of a station takes: on its GPU, else of the machine."""

from flows.forecast.nominal import TRAINED, Job
from nanochat_core.model.counts import NUMBER_BYTES, training_memory
from nanochat_core.training.dial import guess_rows, rows_of_rank

JOB_BYTES = 380 * 10**6
"""Python with torch, before it has a model (CPU build)."""
COMPILED_BYTES = 130 * 10**6
"""What compiling adds."""
TASK_BYTES = 250 * 10**6
"""A data station: Python with Prefect and pyarrow."""
CHARACTER_BYTES = 6.0
"""A harvest holds its documents while it looks for near duplicates."""
JOBS = (*TRAINED, "base_eval", "chat_eval_sft", "chat_eval_rl")
GPU_BYTES = {"H200": 141e9, "H100": 80e9, "A100": 80e9, "L40S": 48e9, "RTX 4090": 24e9}
DEFAULT_GPU_BYTES = 24e9
LOOKING_ROWS = 8


def peak_bytes(job: Job, gpu: str = "") -> int:
    """Of device memory where a GPU computes (then its name is given), else of main memory."""
    if job.station not in JOBS:
        return TASK_BYTES + int(
            CHARACTER_BYTES * job.amounts.characters * (job.station == "shards")
        )
    floor = 0 if job.device_type == "cuda" else JOB_BYTES
    if job.station in TRAINED:
        return floor + _training(job, gpu)
    model = job.model
    weights = 4 * job.amounts.parameters
    row = model.sequence_len * model.n_embd * NUMBER_BYTES[job.numbers] * 16
    logits = 4 * 2 * model.sequence_len * model.vocab_size
    return floor + weights + LOOKING_ROWS * (row + logits)


def _training(job: Job, gpu: str) -> int:
    execution = job.execution
    ranks = execution.ranks * execution.nodes
    memory = training_memory(
        job.model,
        numbers=job.numbers,
        ranks=ranks,
        compiled=execution.compile,
        activation_checkpointing=execution.activation_checkpointing,
    )
    share = rows_of_rank(job.amounts.plan.rows_per_step, ranks)
    rows = job.rows
    if job.device_type == "cuda" and execution.device_batch_size == "auto":
        limit = execution.memory_limit_gb
        found = GPU_BYTES.get(gpu, DEFAULT_GPU_BYTES) if limit == "auto" else limit * 1e9
        rows = guess_rows(memory, share, int(found))
    compiling = COMPILED_BYTES if execution.compile and job.device_type != "cuda" else 0
    return compiling + memory.peak(rows, max(share // rows, 1))
