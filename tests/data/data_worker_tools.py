"""What the worker processes of a test run; a module of its own, since they import it by name."""

import os
import time
from pathlib import Path


def write_pid_and_sleep(path: Path) -> None:
    path.write_text(str(os.getpid()))
    time.sleep(60)
