"""The function behind `nanochat doctor`; `flows.cli` registers it."""

import os
import sys
from typing import Annotated

import typer

from nanochat_core.artifacts.location import default_store_url
from tasks.process_environment import process_environment

DOCTOR_MODULE = "nanochat_core.jobs.doctor"
EPILOG_LINES = (
    "nanochat doctor                      what works here, how fast, and what does not",
    "nanochat doctor --json               the same for programs",
    "nanochat doctor --fp8 --ranks 8      whether that would run",
    "nanochat doctor --store s3://b/nano  with the speed of that store",
    "",
    "The exit code is 1 when something that the setting needs does not work.",
)


def doctor(  # noqa: PLR0913  one parameter per option
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cuda, mps or cpu")] = "auto",
    compute_dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="auto, bfloat16, float16 or float32")
    ] = "auto",
    attention: Annotated[
        str, typer.Option(metavar="BACKEND", help="auto, fa3, fa4, flex or sdpa")
    ] = "auto",
    fp8: Annotated[bool, typer.Option("--fp8", help="training in fp8 is wanted")] = False,
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="whether torch.compile is wanted")
    ] = True,
    ranks: Annotated[int, typer.Option(metavar="N", help="training processes")] = 1,
    threads: Annotated[int, typer.Option(metavar="N", help="CPU threads of a process")] = 1,
    store: Annotated[
        str,
        typer.Option(
            "--store",
            metavar="PLACE",
            show_default=False,
            help="folder or URL (s3://bucket/prefix) of the artifacts; default: NANOCHAT_STORE, "
            "else a folder of your user's cache",
        ),
    ] = "default",
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object, no tables")] = False,
) -> None:
    """Examine this machine: what works, how fast it is, and what to do about the rest.

    Number formats and their matrix products, memory, fp8, attention backends, the compiler,
    several processes, the disks and the store, and the sandbox are tried here and now.
    """
    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    command = [
        *(sys.executable, "-m", DOCTOR_MODULE),
        *("--device", device, "--compute-dtype", compute_dtype, "--attention", attention),
        *("--ranks", str(ranks), "--threads", str(threads)),
        *("--store", default_store_url(environ) if store == "default" else store),
        *(["--fp8"] if fp8 else []),
        *([] if compile_ else ["--no-compile"]),
        *(["--json"] if as_json else []),
    ]
    # As jobs are started: OpenMP reads both before torch can be asked.
    threading = {**process_environment(environ), "OMP_NUM_THREADS": str(threads)}
    # The examination takes over this process: Ctrl-C and exit code are all its own.
    os.execve(sys.executable, command, threading)
