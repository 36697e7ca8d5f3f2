"""The options by which commands name a run: `run` makes it, `plan` and `why` look at it first."""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

from flows.artifacts_command import StoreOption
from nanochat_core.errors import ConfigError

Options = dict[str, tuple[Any, Any]]
"""Name -> annotation and default, as in the signature of a command."""

PresetArgument = Annotated[
    str,
    typer.Argument(
        metavar="PRESET",
        help="tiny (seconds), demo (minutes), cpu (hours), research and speedrun (GPUs)",
    ),
]
DepthOption = Annotated[
    str, typer.Option(metavar="N", show_default=False, help="layers of the model: the one dial")
]
UpstreamOption = Annotated[
    str,
    typer.Option(
        metavar="PLACE",
        show_default=False,
        help="another store, only read: what yours lacks is taken from there, and verified; "
        "default: NANOCHAT_UPSTREAM",
    ),
]
SourceOption = Annotated[
    list[str],
    typer.Option(
        metavar="TEXT",
        help="your own text: file, folder, 'glob*' or URL; docs; hf://datasets/OWNER/NAME or "
        "shards:FOLDER; repeatable, with shares as in book.txt@30 docs@70",
    ),
]
MirrorOption = Annotated[
    list[str],
    typer.Option(
        "--mirror",
        metavar="PLACE",
        help="folder or URL with copies of published shards; repeatable",
    ),
]
OfflineOption = Annotated[
    bool, typer.Option("--offline", help="fetch no shards: use what is in the store and mirrors")
]
ConversationsOption = Annotated[
    list[str],
    typer.Option(
        metavar="FILE[@EPOCHS]",
        help="your own conversations for fine-tuning (nanochat data check FILE); repeatable",
    ),
]
AssignmentsOption = Annotated[
    list[str],
    typer.Option("--set", metavar="STATION.FIELD=VALUE", help="change a number; repeatable"),
]
StartFromOption = Annotated[
    str,
    typer.Option(
        metavar="STATION", show_default=False, help="make this one and all after it again"
    ),
]
StopAfterOption = Annotated[
    str, typer.Option(metavar="STATION", show_default=False, help="leave out all after this")
]
ForceOption = Annotated[
    list[str],
    typer.Option(
        metavar="STATION",
        help="make this one again, and what follows only if the result differs; repeatable",
    ),
]
PoolOption = Annotated[
    list[str],
    typer.Option(
        "--pool",
        metavar="STATION=POOL",
        help="have a worker of this Prefect pool make it; repeatable",
    ),
]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="wait while another process makes the same artifact")
]
BenchmarksOption = Annotated[
    str,
    typer.Option(
        metavar="FOLDER",
        show_default=False,
        help="files of official benchmarks, as in gsm8k-test.jsonl, put to the chat models",
    ),
]
RunNameOption = Annotated[
    str,
    typer.Option(
        "--run", metavar="NAME", show_default=False, help="track under this name; dummy: no"
    ),
]
WeakSandboxOption = Annotated[
    bool,
    typer.Option(
        "--allow-weak-sandbox",
        help="run generated code (HumanEval) where only limits hold it back",
    ),
]
TrackerOption = Annotated[
    str,
    typer.Option(
        metavar="TRACKER", help="wandb (offline by default) or trackio, beside metrics.jsonl"
    ),
]

OPTIONS: Options = {
    "preset": (PresetArgument, "demo"),
    "depth": (DepthOption, "preset"),
    "store": (StoreOption, "default"),
    "upstream": (UpstreamOption, ""),
    "source": (SourceOption, []),
    "mirrors": (MirrorOption, []),
    "offline": (OfflineOption, False),
    "assignments": (AssignmentsOption, []),
    "start_from": (StartFromOption, "none"),
    "stop_after": (StopAfterOption, "end"),
    "force": (ForceOption, []),
    "pool": (PoolOption, []),
    "wait": (WaitOption, False),
    "benchmarks": (BenchmarksOption, ""),
    "conversations": (ConversationsOption, []),
    "run_name": (RunNameOption, ""),
    "allow_weak_sandbox": (WeakSandboxOption, False),
    "tracker": (TrackerOption, "none"),
}


Command = Callable[..., None]


def takes_options(
    options: Options, parse: Callable[[dict[str, Any]], Any]
) -> Callable[[Command], Command]:
    """A command with these options among its own; it gets what `parse` makes of their values."""

    def decorate(command: Command) -> Command:
        own = [*inspect.signature(command).parameters.values()][1:]

        @functools.wraps(command)
        def wrapped(**values: Any) -> None:
            given = {name: values.pop(name) for name in options}
            command(parse(given), **values)

        first = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=k)
            for name, (k, default) in options.items()
        ]
        rest = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        # PRESET stands for itself in most cases: what has to be given comes before it.
        needed = [p for p in rest if p.default is p.empty]
        optional = [p for p in rest if p not in needed]
        signature = inspect.Signature([*needed, *first, *optional])
        # typer reads the signature; what functools.wraps has copied would contradict it.
        wrapped.__signature__ = signature  # type: ignore[attr-defined]
        wrapped.__annotations__ = {}
        return wrapped

    return decorate


def takes_run_options(command: Command) -> Command:
    """A command with the options of a run among its own; it gets them as `parameters`.

    They are RunParameters, checked as far as that needs no look at the source.
    """
    return takes_options(OPTIONS, _parameters)(command)


def _parameters(given: dict[str, Any]) -> Any:
    from flows.overrides import parse_assignments
    from flows.parameters import WEAK_SANDBOX, parse_parameters

    weak = WEAK_SANDBOX if given.pop("allow_weak_sandbox") else {}
    return parse_parameters(
        {
            "overrides": {**weak, **parse_assignments(given.pop("assignments"))},
            "stage_pools": parsed_pools(given.pop("pool")),
            "run": given.pop("run_name"),
            **given,
        }
    )


def parsed_pools(texts: list[str]) -> dict[str, str]:
    """`--pool` options as station -> work pool."""
    return dict(map(_pool, texts))


def _pool(text: str) -> tuple[str, str]:
    station, equals, pool = text.partition("=")
    if not equals or not station.strip() or not pool.strip():
        raise ConfigError(f"--pool {text!r}: expected STATION=POOL, as in pretrain=gpu")
    return station.strip(), pool.strip()
