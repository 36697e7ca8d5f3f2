"""The commands `nanochat run miniseries`, `scaling-laws` and `sweep`, for `flows.cli`."""

import os
import sys
from typing import Annotated, Any

import typer

from flows.run_options import OPTIONS, Options, parsed_pools, takes_options
from flows.starting import start_server, stop_in_order
from nanochat_core.errors import NanochatError

DepthsOption = Annotated[
    str,
    typer.Option(metavar="N,N,..", show_default=False, help="layers of the models, as in 1,2,3"),
]
BudgetsOption = Annotated[
    str,
    typer.Option(
        metavar="F,F,..", show_default=False, help="training FLOPs of a model, as in 1e18,3e18"
    ),
]
PresetOption = Annotated[
    str, typer.Option(metavar="PRESET", help="what every point is, but for what is varied")
]
AssignmentsOption = Annotated[
    list[str],
    typer.Option(
        "--set",
        metavar="STATION.FIELD=VALUES",
        help="one value: for all points; values with commas between: vary it; repeatable",
    ),
]
ChatOption = Annotated[
    bool, typer.Option("--chat", help="fine-tune, reinforce and examine each model, too")
]
JobsOption = Annotated[
    int, typer.Option(metavar="N", min=1, help="points at a time, each on GPUs of its own")
]
PriceOption = Annotated[
    float,
    typer.Option(
        metavar="PRICE",
        min=0.0,
        show_default=False,
        help="of what one point uses (its GPUs): a column of money",
    ),
]
RUN_OPTIONS = (
    *("store", "upstream", "source", "mirrors", "offline", "pool", "wait", "benchmarks"),
    *("conversations", "run_name", "allow_weak_sandbox", "tracker"),
)
COMMON: Options = {
    "preset": (PresetOption, "demo"),
    "assignments": (AssignmentsOption, []),
    "jobs": (JobsOption, 1),
    "chat": (ChatOption, False),
    "price_per_hour": (PriceOption, 0.0),
    **{name: OPTIONS[name] for name in RUN_OPTIONS},
}
DEPTHS: Options = {"depths": (DepthsOption, "")}
BUDGETS: Options = {"budgets": (BudgetsOption, "")}


def _asked(kind: Any, given: dict[str, Any]) -> Any:
    from flows.parameters import WEAK_SANDBOX
    from flows.sweeps.parameters import parse_sweep
    from flows.sweeps.values import parse_numbers, parse_sweep_assignments

    fixed, varied = parse_sweep_assignments(given.pop("assignments"))
    weak = WEAK_SANDBOX if given.pop("allow_weak_sandbox") else {}
    numbers = {
        name: parse_numbers(f"--{name}", text)
        for name in ("depths", "budgets")
        if (text := given.pop(name, ""))
    }
    return parse_sweep(
        kind,
        {
            "overrides": {**weak, **fixed},
            "vary": varied,
            "stage_pools": parsed_pools(given.pop("pool")),
            "run": given.pop("run_name"),
            **numbers,
            **given,
        },
    )


@takes_options({**DEPTHS, **COMMON}, lambda given: _asked("miniseries", given))
def miniseries(asked: Any) -> None:
    """Make models of several depths: one table of what came out, and plots.

    Each depth is the run that nanochat run PRESET --depth N would be, through pretraining and
    evaluation: what is in the store is found there, and only the rest is made.
    """
    _run_sweep(asked)


@takes_options({**BUDGETS, **DEPTHS, **COMMON}, lambda given: _asked("scaling_laws", given))
def scaling_laws(asked: Any) -> None:
    """Make models of several depths for each FLOP budget, and fit laws to what came out.

    Every budget gets models of all depths, each trained for as many steps as the budget pays.
    """
    _run_sweep(asked)


@takes_options({"depth": OPTIONS["depth"], **COMMON}, lambda given: _asked("sweep", given))
def sweep(asked: Any) -> None:
    """Make runs that differ in any fields: all combinations of the values given with commas.

    Every run is the one that nanochat run PRESET --set FIELD=VALUE would be, through pretraining
    and evaluation: what is in the store is found there, and only the rest is made.
    """
    _run_sweep(asked)


COMMANDS: tuple[tuple[str, Any, tuple[str, ...]], ...] = (
    (
        "miniseries",
        miniseries,
        (
            "nanochat run miniseries --depths 1,2,3 --preset tiny   in a minute",
            "nanochat run miniseries --depths 2,3,4                 of the demo",
            "nanochat run miniseries --depths 2,3,4,5               makes depth 5 only",
            "nanochat run miniseries --depths 8,12 --preset research --jobs 2",
            "",
            "After a stop, or when a depth has failed, run the same command again.",
        ),
    ),
    (
        "scaling-laws",
        scaling_laws,
        (
            "nanochat run scaling-laws --budgets 1e12,2e12,4e12 --depths 1,2,3,4",
            "nanochat run scaling-laws --preset research --budgets 1e18,2e18,4e18 \\",
            "    --depths 8,10,12,14 --jobs 8",
            "",
            "Runs of one depth share their first steps where the decay of weights is",
            "constant, and then cost about half:",
            "  --set pretrain.schedule.cosine_weight_decay=false",
            "  --set pretrain.schedule.warmdown_fraction=0.2",
        ),
    ),
    (
        "sweep",
        sweep,
        (
            "nanochat run sweep --set pretrain.optimizer.matrices.lr=0.01,0.02,0.04",
            "nanochat run sweep --set pretrain.seed=1,2,3       how large is the noise?",
            "nanochat run sweep --set sft.epochs=1,2 --chat     through the chat stages",
            "nanochat run sweep --preset tiny --set pretrain.depth=1,2 \\",
            "    --set pretrain.seed=1,2                        four runs",
            "",
            "An unknown field after --set lists all.",
        ),
    ),
)
"""Name after `nanochat run`, function and examples of each."""


def _run_sweep(asked: Any) -> None:
    stop_in_order()
    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    from flows.sweeps.gpus import gpus_of_jobs
    from flows.sweeps.points import check_points, expand, notes
    from flows.sweeps.view import make_sweep_view
    from nanochat_core.artifacts.store import ArtifactStore

    points = expand(asked)
    runs = check_points(points, environ)
    if asked.jobs > 1:
        gpus_of_jobs(runs, asked.jobs, environ)
    store = ArtifactStore(runs[0].store_url)
    store.check_writable()
    typer.echo(f"{len(points)} points of {asked.preset}: artifacts in {store.url}")
    for note in notes(points, runs):
        typer.echo(f"note: {note}", err=True)
    server = start_server(environ, needs_workers=bool(runs[0].pools))
    from flows.sweeps.running import run_sweep_watched

    view = make_sweep_view(sys.stdout)
    try:
        run_sweep_watched(asked, view, server)
    except NanochatError:
        _conclude(view)
        raise
    _conclude(view)


def _conclude(view: Any) -> None:
    for line in view.conclusions:
        typer.echo(line)
