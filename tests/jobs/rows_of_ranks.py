"""Run by torchrun: every rank wants another number of rows; what they settle on is printed.

torchrun rows_of_ranks.py JOB.json
"""

import sys
from pathlib import Path

from nanochat_core.config.job import JobSpec
from nanochat_core.distributed.ranks import init_ranks
from nanochat_core.jobs.device_rows import DeviceRows, rows_of

ranks = init_ranks("cpu")
device_rows = DeviceRows(JobSpec.load(Path(sys.argv[1])), ranks)
settled = device_rows.settle(lambda: 16 >> ranks.rank, share=32)
sys.stdout.write(f"rank {ranks.rank}: {rows_of(settled)}\n")
ranks.close()
