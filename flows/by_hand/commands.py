"""`nanochat train pretrain|sft|rl` and `nanochat eval core|bpb|chat`, in the reference's words.

A command is made from its table of flags; what it does is imported when it is called.
"""

import inspect
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from flows.by_hand import tables
from flows.by_hand.flags import Flag
from nanochat_core.errors import JobError, JobStoppedError, NanochatError

EXIT_LOST, EXIT_MISTAKE, EXIT_INTERRUPTED, EXIT_STOPPED = 1, 2, 130, 143
"""As jobs end: 2 is whatever their user can mend, 143 a stop with the progress saved."""
STOPPED = (
    "Stopped. The same command, without --overwrite, goes on from the last checkpoint; an "
    "evaluation without --fresh goes on after the last whole task."
)

Act = Callable[[Mapping[str, Any]], None]


class _Terminated(BaseException):
    """SIGTERM, as an exception that ends this process in order."""


def raise_terminated(_number: int, _frame: FrameType | None) -> NoReturn:
    """Handle SIGTERM in a command that `ended` runs."""
    raise _Terminated


def command(flags: Sequence[Flag], act: Act, doc: str) -> Callable[..., None]:
    """A function whose parameters are the flags, for typer; it ends with an exit code."""

    def run(**values: Any) -> None:
        raise typer.Exit(ended(act, values))

    parameters = [
        inspect.Parameter(
            flag.key,
            inspect.Parameter.KEYWORD_ONLY,
            default=_default(flag),
            annotation=_annotation(flag),
        )
        for flag in flags
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # typer reads it
    run.__annotations__ = {}
    run.__doc__ = doc
    return run


def _default(flag: Flag) -> Any:
    return [] if flag.repeatable else False if flag.takes is bool else None


def _annotation(flag: Flag) -> Any:
    names = [f"--{flag.name}", *([f"-{flag.short}"] if flag.short else [])]
    option = typer.Option(
        *names,
        help=flag.help,
        metavar=None if flag.takes is bool else flag.metavar or "N",
        show_default=False,
    )
    takes: Any = list[str] if flag.repeatable else bool if flag.takes is bool else flag.takes | None
    return Annotated[takes, option]


def ended(act: Act, values: Mapping[str, Any]) -> int:
    """Do it, and turn its end into an exit code, with one message instead of a traceback."""
    try:
        act({name: None if value is False else value for name, value in values.items()})
    except JobStoppedError as stopped:
        typer.echo(str(stopped), err=True)
        return EXIT_STOPPED
    except NanochatError as error:
        typer.echo(f"error: {error}", err=True)
        return EXIT_LOST if isinstance(error, JobError) else EXIT_MISTAKE
    except KeyboardInterrupt:
        typer.echo(STOPPED, err=True)
        return EXIT_INTERRUPTED
    except _Terminated:
        typer.echo(STOPPED, err=True)
        return EXIT_STOPPED
    return 0


def plan(name: str, values: Mapping[str, Any], torchrun_ranks: int | None = None) -> Any:
    """The job that a command stands for."""
    from flows.by_hand import planning
    from flows.by_hand.asking import Request

    station, flags = TABLES[name]
    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    request = Request(station, flags, values, environ, torchrun_ranks)
    if name == "core":
        return planning.plan_base_eval(request, ("core",), "core")
    if name == "bpb":
        return planning.plan_base_eval(request, ("bpb",), "bpb")
    if name == "base_eval":
        return planning.plan_base_eval(request, planning.parts_of(values), "base_eval")
    make: Callable[[Request], Any] = getattr(planning, f"plan_{name}")
    return make(request)


def supervised(name: str) -> Act:
    """Run the job of a command as a child, under the supervisor."""

    def act(values: Mapping[str, Any]) -> None:
        signal.signal(signal.SIGTERM, raise_terminated)
        from flows.by_hand.launching import make

        make(plan(name, values), sys.stdout)

    return act


TABLES: dict[str, tuple[str, Sequence[Flag]]] = {
    "pretrain": ("pretrain", tables.PRETRAIN),
    "sft": ("sft", tables.SFT),
    "rl": ("rl", tables.RL),
    "core": ("base_eval", tables.CORE),
    "bpb": ("base_eval", tables.BPB),
    "base_eval": ("base_eval", tables.BASE_EVAL),
    "chat_eval": ("chat_eval", tables.CHAT_EVAL),
}
DOCS = {
    "pretrain": "Train a base model on tokens.",
    "sft": "Fine-tune a base model on conversations.",
    "rl": "Train a chat model on problems whose answers can be judged.",
    "core": "Ask a base model the CORE tasks, or tasks made of held-out text.",
    "bpb": "Measure bits per byte on held-out text.",
    "base_eval": "CORE, bits per byte and samples of a base model.",
    "chat_eval": "Put benchmarks to a chat model.",
}
# `--device_batch_size` is `--device-batch-size`.
SETTINGS = {"token_normalize_func": lambda name: name.replace("_", "-")}


def add(app: typer.Typer, name: str, spelled: str, *lines: str) -> None:
    """Add a command to an app; `lines` are examples."""
    epilog = "\n  ".join(("\b\nExamples:", *lines)) if lines else None
    function = command(TABLES[name][1], supervised(name), DOCS[name])
    app.command(spelled, context_settings=SETTINGS, epilog=epilog)(function)


train_app = typer.Typer(
    help="Train one stage by hand, with the reference's flags.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
add(
    train_app, "pretrain", "pretrain",
    "nanochat train pretrain --depth 12",
    "nanochat train pretrain --depth 12 --nproc-per-node 8 --device-batch-size 16",
    "nanochat train pretrain --preset demo --tokens demo --model-tag mine",
    "nanochat train pretrain --depth 24 --nnodes 2 --rdzv-endpoint node01:29500 --rdzv-id night",
    "",
    "After a stop, the same command continues. -1 turns off what can be turned off.",
)  # fmt: skip
add(
    train_app, "sft", "sft",
    "nanochat train sft                 the newest base model",
    "nanochat train sft --checkpoint d12 --init-lr-frac 0.5",
)  # fmt: skip
add(
    train_app, "rl", "rl",
    "nanochat train rl --checkpoint d12 --data gsm8k-folder",
    "nanochat train rl --set task=sums",
)  # fmt: skip

eval_app = typer.Typer(
    help="Evaluate one model by hand, with the reference's flags.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
add(
    eval_app, "core", "core",
    "nanochat eval core                 tasks made of held-out text: demo_score",
    "nanochat eval core --checkpoint d12 --eval-bundle eval_bundle.zip --max-per-task 500",
    "",
    "Tasks that this model was asked before, in a run or by hand, are not asked again.",
)  # fmt: skip
add(eval_app, "bpb", "bpb", "nanochat eval bpb --checkpoint d12")
add(
    eval_app, "chat_eval", "chat",
    "nanochat eval chat -i sft          who it is, and sums",
    "nanochat eval chat -i rl -a 'GSM8K|HumanEval' --data FOLDER -x 100",
    "",
    "Benchmarks that this model was asked before, in a run or by hand, are not asked again.",
)  # fmt: skip
