"""The functions behind `nanochat artifacts why` and `diff`; `flows.cli` registers them."""

import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.artifacts_command import StoreOption
from flows.run_options import takes_run_options

if TYPE_CHECKING:
    from flows.explaining import Explanation
    from flows.parameters import ResolvedRun, RunParameters

NameArgument = Annotated[
    str,
    typer.Argument(
        metavar="STATION|NAME",
        help="a station of the run that the options describe; or an artifact that is there, by "
        "alias, station/fingerprint or fingerprint",
    ),
]
_RUN_HELP = "run id, its first characters, last, last~1 (the one before), …"
FirstRunArgument = Annotated[str, typer.Argument(metavar="RUN_A", help=_RUN_HELP)]
SecondRunArgument = Annotated[str, typer.Argument(metavar="RUN_B", help="the other one, likewise")]
JsonOption = Annotated[bool, typer.Option("--json", help="everything that was found, as JSON")]


@takes_run_options
def why(parameters: "RunParameters", name: NameArgument, as_json: JsonOption = False) -> None:
    """Say why a station is a hit or a miss, or why an artifact is not the one before it.

    A STATION is that of the run which the same options of `nanochat run` would make: nothing is
    made, every file that would be used is verified. What counts is recipe, code version and the
    content of the inputs; a miss is compared with the nearest artifact in the store.
    """
    found = _explained(parameters, name)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
        return
    from flows.why_page import why_lines

    for line in why_lines(found):
        typer.echo(line)


def _explained(parameters: "RunParameters", name: str) -> "Explanation":
    from flows.explaining import Explainer
    from flows.looking import open_store
    from flows.parameters import resolve
    from flows.presets import STATIONS
    from nanochat_core.artifacts.store import ArtifactStore, only_read

    environ = _environ()
    if name not in STATIONS:
        store = open_store(parameters.store, environ)
        return Explainer(store).artifact(_resolved_name(store, name))
    from flows.dry_line import dry_run

    resolved = resolve(parameters, environ)
    _check_in_run(name, resolved)
    upstream = only_read(resolved.upstream_url) if resolved.upstream_url else None
    store = ArtifactStore(resolved.store_url, upstream=upstream)
    return Explainer(store).station(dry_run(resolved, store)[name])


def _check_in_run(station: str, resolved: "ResolvedRun") -> None:
    from nanochat_core.errors import ConfigError

    if station not in resolved.stations:
        raise ConfigError(
            f"the station {station} is not in this run, which has {', '.join(resolved.stations)}; "
            "benchmarks is there with --benchmarks FOLDER, others with a later --stop-after"
        )


def _resolved_name(store: Any, name: str) -> Any:
    """An artifact by any of its names; a station with a typo in it is told as one."""
    from flows.looking import LATEST
    from flows.overrides import one_of
    from flows.presets import PRESETS, STATIONS
    from nanochat_core.errors import ArtifactNotFoundError

    try:
        return store.resolve(name)
    except ArtifactNotFoundError as error:
        is_no_typo = "/" in name or name in (LATEST, *PRESETS)
        if is_no_typo or "stands for" in str(error):
            raise
        return one_of("station or artifact", name, (*STATIONS, *store.aliases()))


def diff_runs(
    run_a: FirstRunArgument,
    run_b: SecondRunArgument,
    store: StoreOption = "default",
    as_json: JsonOption = False,
) -> None:
    """Compare two runs: where they part and why, then times and numbers side by side.

    A change of a score within two standard errors is called noise.
    """
    from flows.looking import open_store
    from flows.run_differences import compare_runs
    from flows.run_page import print_comparison

    compared = compare_runs(open_store(store, _environ()), run_a, run_b)
    if as_json:
        typer.echo(compared.model_dump_json(indent=1))
    else:
        print_comparison(compared)


def _environ() -> Mapping[str, str]:
    return os.environ  # noqa: TID251  an entry: read here, passed down as values


COMMANDS: tuple[tuple[str, Callable[..., Any], tuple[str, ...]], ...] = (
    (
        "why",
        why,
        (
            "nanochat artifacts why sft demo --set sft.epochs=2",
            "nanochat artifacts why pretrain tiny --source book.txt",
            "nanochat artifacts why latest",
            "nanochat artifacts why sft/3f2a91c0 --json",
        ),
    ),
    (
        "diff",
        diff_runs,
        (
            "nanochat artifacts diff last~1 last",
            "nanochat artifacts diff 20261123-0554 20261123-07 --json",
        ),
    ),
)
"""Name, function and examples of each."""
