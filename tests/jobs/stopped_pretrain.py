"""Run as a process of its own: pretrain, stop after some steps, and say what memory that left.

python stopped_pretrain.py JOB.json STEPS
"""

import gc
import sys
from pathlib import Path

import torch

from nanochat_core.config.job import METRICS_FILE, JobSpec
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import JobStoppedError
from nanochat_core.jobs import pretrain
from nanochat_core.jobs.common import StopRequest
from nanochat_core.training.device_batch import private_data_bytes


class StopAfter(StopRequest):
    """Asks for a stop once so many steps are in the metrics."""

    def __init__(self, metrics: Path, num_steps: int) -> None:
        super().__init__()
        self.metrics, self.num_steps = metrics, num_steps

    def __call__(self) -> bool:
        return self.metrics.read_bytes().count(b"\n") >= self.num_steps


def main(job_file: Path, num_steps: int) -> None:
    torch.set_num_threads(1)
    spec = JobSpec.load(job_file)
    stop = StopAfter(Path(spec.work_folder) / METRICS_FILE, num_steps)
    try:
        pretrain.main(spec, Ranks.single(), stop)
    except JobStoppedError as stopped:
        message = str(stopped)
    gc.collect()
    sys.stderr.write(f"{message}\n")
    sys.stdout.write(str(private_data_bytes()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
