"""How long it takes to the end of the first step, with nothing compiled yet and with all of it.

Each start is a process of its own. The second one finds what the first has compiled in a copy of
its folder at another place, which is how compiled code comes out of an artifact store.
"""

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nanochat_core.errors import JobError

MODULE = "nanochat_core.bench.train"
FEW_STEPS = ("--steps", "2", "--warm-up", "1", "--checkpoints", "0", "--against", "none")


def cold_start(options: Sequence[str], environ: Mapping[str, str]) -> dict[str, Any]:
    """Run the benchmark with these options twice; both reports, shortened to what matters."""
    with tempfile.TemporaryDirectory() as folder:
        cold, warm = Path(folder) / "cold", Path(folder) / "another" / "place"
        cold.mkdir()
        first = start(options, environ, cold)
        shutil.copytree(cold, warm)
        size = sum(path.stat().st_size for path in warm.rglob("*") if path.is_file())
        second = start(options, environ, warm)
    return {
        "seconds_to_first_step_cold": first["seconds_to_first_step"],
        "seconds_to_first_step_warm": second["seconds_to_first_step"],
        "compile_seconds_cold": first["compile_seconds"],
        "compile_seconds_warm": second["compile_seconds"],
        "cache_bytes": size,
        "cold": first,
    }


def start(options: Sequence[str], environ: Mapping[str, str], cache: Path) -> dict[str, Any]:
    """One run in a new process that keeps everything compiled in `cache`."""
    # Without a folder of their own, Triton's kernels go into inductor's.
    inherited = {name: value for name, value in environ.items() if name != "TRITON_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-m", MODULE, *options, *FEW_STEPS, "--cache", str(cache)],
        env={**inherited, "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise JobError(f"the benchmark ended with exit code {done.returncode}; see above")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
