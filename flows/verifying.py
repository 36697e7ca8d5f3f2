"""What `nanochat verify-resume` does: two runs, one of them killed, their table and the verdict."""

import hashlib
import json
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from pydantic import ValidationError

from flows.interrupted import (
    INTERRUPTED,
    STRAIGHT,
    Compared,
    Told,
    Trial,
    compare,
    draw_kills,
    make_inputs,
    run,
)
from flows.overrides import config_error
from flows.presets import PRESETS
from nanochat_core.config.execution import Execution
from nanochat_core.data.recipes import HarvestSource
from nanochat_core.errors import BatchSizeError, ConfigError, UnknownNameError
from nanochat_core.training.recipes import PretrainRecipe

SHAPES = {"tiny": "tiny", "demo-shape": "demo"}
"""Name here -> the preset whose model and batch are taken; the text is made up."""
CHECKPOINT_EVERY = 5
NAMES_SHOWN = 5


def verify(
    shape: str,
    *,
    kills: int,
    num_steps: int,
    ranks: str,
    seed: int,
    compute_dtype: str,
    execution: dict[str, Any],
) -> bool:
    """Run both and print how they compare; runs that differ are kept. A seed below 0 is drawn."""
    seed = random.SystemRandom().randrange(2**32) if seed < 0 else seed
    trial = plan_trial(
        shape,
        kills=kills,
        num_steps=num_steps,
        ranks=ranks_of(ranks),
        seed=seed,
        compute_dtype=compute_dtype,
        execution=execution,
    )
    folder = Path(tempfile.mkdtemp(prefix="nanochat-verify-resume-"))
    form = f"{compute_dtype}, {'compiled' if execution['compile'] else 'eager'}"
    typer.echo(f"{shape}: {num_steps} steps, {form}, ranks {ranks}, seed {seed}")
    try:
        run_both(trial, folder)
        same = report(compare(folder / STRAIGHT, folder / INTERRUPTED))
    except BaseException:
        typer.echo(f"what was run until then is in {folder}", err=True)
        raise
    if same:
        shutil.rmtree(folder)
    else:
        typer.echo(f"both runs are kept; see again: nanochat verify-resume --again {folder}")
    return same


def compare_again(folder: Path) -> bool:
    """The table and the verdict on two runs that are there."""
    if not all((folder / name).is_dir() for name in (STRAIGHT, INTERRUPTED)):
        raise ConfigError(f"--again {folder}: it has no folders {STRAIGHT} and {INTERRUPTED}")
    return report(compare(folder / STRAIGHT, folder / INTERRUPTED))


def ranks_of(text: str) -> tuple[int, ...]:
    """`4,2,1` as numbers."""
    try:
        numbers = tuple(int(word) for word in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ConfigError(f"--ranks {text!r}; give a number, or one for each start, as in 4,2,1")
    return numbers


def plan_trial(
    shape: str,
    *,
    kills: int,
    num_steps: int,
    ranks: tuple[int, ...],
    seed: int,
    compute_dtype: str,
    execution: dict[str, Any],
) -> Trial:
    """What is run: the preset's pretraining, with checkpoints often enough for every kill."""
    if shape not in SHAPES:
        raise UnknownNameError(f"there is no preset {shape!r}; there is {', '.join(SHAPES)}")
    preset = PRESETS[SHAPES[shape]](HarvestSource(versions={}, python=""))
    pretrain, vocab_size = preset.recipes.pretrain, preset.recipes.tokenizer.vocab_size
    values = {"num_iterations": num_steps, "compute_dtype": compute_dtype}
    settings = {
        "log_every": 1,
        "checkpoint_every": CHECKPOINT_EVERY,
        "eval_every": -1,
        "device_batch_size": device_batch_size(pretrain, max(ranks)),
        "ranks": ranks[0],
        **execution,
    }
    base = preset.executions.pretrain.model_dump()
    try:
        recipe = PretrainRecipe.model_validate({**pretrain.model_dump(), **values})
        placed = Execution.model_validate({**base, **settings})
    except ValidationError as error:
        raise config_error("", error) from error
    choose = random.Random(seed)
    drawn = draw_kills(kills, num_steps, choose, first=CHECKPOINT_EVERY + 1)
    return Trial(recipe, placed, vocab_size, num_steps, drawn, ranks)


def device_batch_size(recipe: PretrainRecipe, most_ranks: int) -> int:
    """Rows of a micro-batch, the same for any of the ranks: two passes where there are most."""
    assert recipe.tokens_per_step != "auto", "the presets here name their batch"
    rows = recipe.tokens_per_step // recipe.sequence_len
    if rows % most_ranks:
        raise BatchSizeError(
            f"--ranks {most_ranks} cannot share {rows} rows of a step; use a power of two up to "
            f"{rows}"
        )
    return max(rows // most_ranks // 2, 1)


def run_both(trial: Trial, folder: Path) -> None:
    """Make the text, run in peace and through the kills, and print how that went."""
    tokens = trial.num_steps * int(trial.recipe.tokens_per_step)
    inputs = make_inputs(folder / "inputs", trial.vocab_size, tokens)
    for name, kills in ((STRAIGHT, ()), (INTERRUPTED, trial.kills)):
        typer.echo(f"  {name}: {describe_told(run(trial, inputs, folder / name, kills))}")


def describe_told(told: Told) -> str:
    """How a run went, in one line."""
    killed = f"killed: {', '.join(told.killed)}; " if told.killed else ""
    resumed = ", ".join(str(step) for step in told.resumed_after)
    return f"{killed}{f'resumed after step {resumed}; ' if resumed else ''}{told.seconds:.1f} s"


def report(parts: Sequence[Compared]) -> bool:
    """Print the table and the verdict."""
    typer.echo(f"\n  {'what':<16} {'number':>6}  {'straight':<12}  {'interrupted':<12}")
    for part in parts:
        left, right = short_hash(part.straight), short_hash(part.interrupted)
        verdict = f"{len(part.different)} differ" if part.different else "equal"
        typer.echo(f"  {part.name:<16} {len(part.straight):>6}  {left:<12}  {right:<12}  {verdict}")
    different = [part for part in parts if part.different]
    typer.echo("\nverdict: " + ("the runs differ" if different else "bit-identical"))
    for part in different:
        shown = ", ".join(part.different[:NAMES_SHOWN])
        more = len(part.different) - NAMES_SHOWN
        typer.echo(f"  {part.name}: {shown}{f' and {more} more' if more > 0 else ''}")
    return not different


def short_hash(values: dict[str, str]) -> str:
    """The start of a sha256 over names and values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]
