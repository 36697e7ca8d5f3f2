"""`error.json`: what broke a job, one for all of its ranks. Torch-free, for its launcher too.

What broke a rank always gets in. That a rank has lost another one, or was asked to stop, gets in
only where nothing else is told, because it is what follows.
"""

import json
import os
import shutil
from pathlib import Path
from uuid import uuid4

from nanochat_core.config.job import ERROR_FILE
from nanochat_core.errors import JobStoppedError, NanochatError, RanksLostError


def write_error(work_folder: Path, error: NanochatError) -> None:
    """Write `error.json`; several ranks may do so at the same time, and one of them is kept whole.

    A lost rank or a stop never replaces what another rank has written.
    """
    body = {"type": type(error).__name__, "message": str(error)}
    # Ranks of other machines may have the same process id.
    temporary = work_folder / f"{ERROR_FILE}.{uuid4().hex}"
    temporary.write_text(json.dumps(body), encoding="utf-8")
    if not isinstance(error, RanksLostError | JobStoppedError):
        os.replace(temporary, work_folder / ERROR_FILE)
        return
    target = work_folder / ERROR_FILE
    try:
        os.link(temporary, target)
    except FileExistsError:
        pass
    except OSError:
        # A file system without hard links; a moment in which two could write is the best it has.
        if not target.exists():
            shutil.copyfile(temporary, target)
    temporary.unlink()
