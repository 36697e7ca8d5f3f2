"""The function behind `nanochat verify-resume`; `flows.cli` registers it."""

from pathlib import Path
from typing import Annotated

import typer

EXIT_DIFFERENT = 1
EPILOG_LINES = (
    "nanochat verify-resume                          in seconds",
    "nanochat verify-resume --dtype bfloat16 --compile",
    "nanochat verify-resume --preset demo-shape --steps 100 --kills 4",
    "nanochat verify-resume --ranks 4,2,1            fewer processes after each kill",
    "nanochat verify-resume --device cuda --dtype bfloat16 --compile",
    "",
    "The exit code is 1 when anything differs.",
)


def verify_resume(  # noqa: PLR0913  one parameter per option
    preset: Annotated[
        str, typer.Option(metavar="NAME", help="size of model and batch: tiny or demo-shape")
    ] = "tiny",
    kills: Annotated[int, typer.Option(metavar="N", help="kills in one run")] = 2,
    steps: Annotated[int, typer.Option(metavar="N", help="steps of the run")] = 40,
    dtype: Annotated[
        str, typer.Option(metavar="DTYPE", help="float32, bfloat16, float16 or auto")
    ] = "float32",
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="compiled, or eager")
    ] = False,
    ranks: Annotated[
        str,
        typer.Option(metavar="N[,N...]", help="processes; several numbers: one for each start"),
    ] = "1",
    device: Annotated[str, typer.Option(metavar="DEVICE", help="auto, cuda, mps or cpu")] = "auto",
    threads: Annotated[int, typer.Option(metavar="N", help="CPU threads of a process")] = 1,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N", show_default=False, help="of the moments to kill; drawn if not given"
        ),
    ] = -1,
    again: Annotated[
        str,
        typer.Option(
            metavar="FOLDER", show_default=False, help="only compare what an earlier proof left"
        ),
    ] = "",
) -> None:
    """Prove that a killed run ends with the same bits: kill one here, resume it, and compare.

    A small model is trained on made-up text twice: once in peace, and once killed with SIGKILL at
    random steps (one process and all of them in turn) and resumed each time. Weights, moments of
    the optimizer, counters, the next batches, losses, metrics and published files must be equal.
    """
    # Not at the top: what reads data loads slowly, and every command shows its help at once.
    from flows.verifying import compare_again, verify

    if again:
        same = compare_again(Path(again))
    else:
        same = verify(
            preset,
            kills=kills,
            num_steps=steps,
            ranks=ranks,
            seed=seed,
            compute_dtype=dtype,
            execution={"compile": compile_, "device": device, "threads": threads},
        )
    if not same:
        raise typer.Exit(EXIT_DIFFERENT)
