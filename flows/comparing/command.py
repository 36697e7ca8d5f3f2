"""The function behind `nanochat compare`; `flows.cli` registers it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.artifacts_command import StoreOption
from nanochat_core.errors import ConfigError

if TYPE_CHECKING:
    from nanochat_core.report.comparing.page import Judged

EPILOG_LINES = (
    "nanochat compare demo pretrain/3f2a91c0     two models by alias or reference",
    "nanochat compare last~1 last                the models of the last two runs",
    "nanochat compare demo idea-1 idea-2         each against the first, p values adjusted",
    "nanochat compare demo                       how large is the noise of its repeats?",
    "",
    "Repeats are found by themselves: models of the store that differ in seeds only.",
    "nanochat run sweep --preset demo --set pretrain.seed=1,2,3    makes three of them",
)
OutputOption = Annotated[
    Path, typer.Option("--output", metavar="DIR", help="folder for the page, plots, CSV and JSON")
]
ModelsArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="A B ...",
        help="the baseline, then what is held against it: alias, run id, station/fingerprint; "
        "of a chat model its base model counts",
    ),
]
MetricOption = Annotated[str, typer.Option(metavar="NAME", help="bpb, core or demo")]


def compare(
    models: ModelsArgument,
    output: OutputOption = Path("compare"),
    metric: MetricOption = "bpb",
    store: StoreOption = "default",
) -> None:
    """Compare base models: is the gain larger than the noise?

    Final numbers with the spread of repeats, numbers at equal steps, FLOPs and time, curves with
    the noise band, what differs between the recipes, and a verdict in plain words.
    """
    from flows.comparing.runs import compare_models
    from flows.looking import open_store
    from nanochat_core.report.comparing.page import Judged, write_comparison

    if output.exists() and not output.is_dir():
        raise ConfigError(f"--output {output} is a file; give a folder, which may be new")
    place = "" if store == "default" else store
    judged = Judged.of(compare_models(open_store(store, _environ()), models, metric, place))
    written = write_comparison(judged, output)
    for line in terminal_lines(judged, [str(output / name) for name in written]):
        typer.echo(line)


def terminal_lines(judged: "Judged", written: list[str]) -> list[str]:
    """The verdict first, then the table, what differs, and where the rest is."""
    from flows.looking import table
    from nanochat_core.report.comparing.page import (
        SHOWN_DIFFERENCES,
        budget_rows,
        level_words,
        summary_rows,
    )

    comparison = judged.comparison
    blocks = [judged.words()]
    blocks += [
        table(rows, right_aligned=range(1, len(rows[0])))
        for rows in (summary_rows(judged), budget_rows(judged))
        if rows
    ]
    blocks += [level_words(judged)]
    for side in comparison.sides[1:]:
        shown = [f"  {text}" for text in side.differences[:SHOWN_DIFFERENCES]]
        more = len(side.differences) - len(shown)
        shown += [f"  and {more} more"] if more > 0 else []
        blocks.append([f"{side.label} differs from {comparison.sides[0].letter}:", *shown])
    blocks.append([f"note: {note}" for note in (comparison.measured, *comparison.notes)])
    if commands := judged.commands():
        blocks.append(["repeats that would help:", *(f"  {command}" for command in commands)])
    blocks.append([f"written: {', '.join(written)}"])
    lines = [line for block in blocks if block for line in (*block, "")]
    return lines[:-1]


def _environ() -> Mapping[str, str]:
    return os.environ  # noqa: TID251  an entry: read here, passed down as values
