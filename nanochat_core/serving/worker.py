"""The process of one engine: `python -m nanochat_core.serving.worker --model … --tokenizer …`.

Commands come in on stdin, what each step did goes out on stdout (`wire`). Commands are taken in
between steps, so that the row of a cancelled reply is free at the next one. It ends with its
stdin, in the middle of a step too: whoever started it is gone then, or has no use for it.
"""

import argparse
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, get_args

from nanochat_core.config.execution import Device
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.logs import configure_logging
from nanochat_core.serving.wire import (
    Cancel,
    Command,
    Event,
    Failure,
    ModelFacts,
    Ready,
    Refused,
    Report,
    Step,
    decode_command,
    encode,
)

if TYPE_CHECKING:
    from nanochat_core.inference.engine import InferenceEngine

MAX_FAILED_STEPS = 3
"""So many in a row are no accident of one reply: a new process is better off."""
VISIBLE_GPUS = "CUDA_VISIBLE_DEVICES"

logger = logging.getLogger(__name__)


class Worker:
    """One engine and the replies that were asked of it, by the numbers of who asked."""

    def __init__(self, engine: "InferenceEngine") -> None:
        self.engine = engine
        self._ids: dict[int, int] = {}
        self._numbers: dict[int, int] = {}
        self._failures: list[Failure] = []
        self._gone: list[int] = []
        self._num_failed_steps = 0

    def take(self, command: Command) -> None:
        """Do as told, from the next step on."""
        if isinstance(command, Cancel):
            if command.number in self._ids:
                self.engine.cancel(self._forget(command.number))
                self._gone.append(command.number)
            return
        try:
            sequence_id = self.engine.submit(command.request)
        except ConfigError as error:
            self._failures.append(Failure(command.number, is_of_request=True, message=str(error)))
        else:
            self._ids[command.number] = sequence_id
            self._numbers[sequence_id] = command.number

    def step(self) -> Step:
        """One step of the engine, if it has work, and what there is to say since the last."""
        events = self._events() if self.engine.has_work else []
        report = Step(tuple(events), self.engine.stats, tuple(self._failures), tuple(self._gone))
        self._failures, self._gone = [], []
        return report

    def _events(self) -> list[Event]:
        try:
            outputs = self.engine.step()
        except Exception as error:
            # Out of memory, say: the replies that run are lost, and others may well succeed.
            logger.exception("a step failed")
            self._num_failed_steps += 1
            if self._num_failed_steps == MAX_FAILED_STEPS:
                raise
            self._fail_running(error)
            return []
        self._num_failed_steps = 0
        events = []
        for output in outputs:
            number = self._numbers.get(output.sequence_id)
            if number is not None:
                events.append(Event.of(number, output))
                if output.finish_reason is not None:
                    self._forget(number)
        return events

    def _fail_running(self, error: Exception) -> None:
        """End the oldest replies until no row is in use; those that still wait may succeed."""
        reason = (
            f"the model failed while it answered ({type(error).__name__}); the server's log says "
            "why"
        )
        for number in list(self._ids):
            self.engine.cancel(self._forget(number))
            self._failures.append(Failure(number, is_of_request=False, message=reason))
            if self.engine.stats.num_running == 0:
                break

    def _forget(self, number: int) -> int:
        sequence_id = self._ids.pop(number)
        del self._numbers[sequence_id]
        return sequence_id


class Commands:
    """Lines of a stream as commands, read by a thread that calls `at_end` when there are no more.

    The thread alone waits for a line; who works looks at what has come.
    """

    def __init__(self, stream: BinaryIO, at_end: Callable[[], None]) -> None:
        self._stream, self._at_end = stream, at_end
        self._queue: queue.SimpleQueue[Command] = queue.SimpleQueue()
        threading.Thread(target=self._read, name="commands", daemon=True).start()

    def pending(self, *, wait: bool) -> Iterable[Command]:
        """What has come by now; at least one command if it is to wait."""
        if wait:
            yield self._queue.get()
        while not self._queue.empty():
            yield self._queue.get()

    def _read(self) -> None:
        try:
            for line in self._stream:
                self._queue.put(decode_command(line))
        except ValueError:
            logger.exception("commands of another version")
        finally:
            self._at_end()


def run(worker: Worker, commands: Commands, send: Callable[[Report], None]) -> None:
    """Step as long as there is work, take commands in between, say what happened."""
    # Not before the GPU is chosen.
    import torch

    with torch.inference_mode():
        while True:
            for command in commands.pending(wait=not worker.engine.has_work):
                worker.take(command)
            send(worker.step())


def take_over_pipes() -> tuple[BinaryIO, BinaryIO]:
    """The streams of commands and reports, which are nobody else's from now on.

    What libraries print goes to stderr, and what they read is empty. Nothing is inherited by
    processes that are started from here.
    """
    commands, reports = os.dup(0), os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    os.dup2(2, 1)
    return os.fdopen(commands, "rb"), os.fdopen(reports, "wb")


def see_one_gpu(index: int) -> None:
    """Let this process see one of the GPUs that it may use; call it before torch is imported."""
    environ = os.environ  # noqa: TID251  this process is an entry, and the driver reads it there
    visible = environ.get(VISIBLE_GPUS, "")
    environ[VISIBLE_GPUS] = visible.split(",")[index] if visible else str(index)


def open_ready(arguments: argparse.Namespace) -> tuple["InferenceEngine", Ready]:
    """Load the model, and say what it is."""
    # Not before the GPU is chosen.
    import torch

    from nanochat_core.inference.engine import EngineSettings
    from nanochat_core.inference.opening import open_engine

    settings = EngineSettings(num_rows=arguments.rows, is_exact=arguments.exact)
    engine = open_engine(arguments.model, arguments.tokenizer, arguments.device, settings)
    model = engine.model
    facts = ModelFacts(
        device=str(model.device),
        max_length=engine.max_length,
        sequence_len=model.config.sequence_len,
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_rows=engine.stats.num_rows,
        dtype=str(model.compute_dtype).removeprefix("torch."),
    )
    num_devices = torch.cuda.device_count() if model.device.type == "cuda" else 1
    return engine, Ready(facts, num_devices, engine.stats)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(prog="worker", description="Answer over pipes.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of its tokenizer")
    parser.add_argument("--device", default="auto", choices=get_args(Device))
    parser.add_argument("--rows", type=int, default=32, help="replies at once (%(default)s)")
    parser.add_argument("--exact", action="store_true", help="compute each reply alone")
    parser.add_argument("--gpu", type=int, help="index of the only GPU to see; default: all")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Load a model and answer until nobody asks any more; returns the exit code."""
    arguments = parse_arguments(argv)
    commands, reports = take_over_pipes()
    configure_logging()
    # While a model is loaded or computes, too: nothing that this process has is worth keeping.
    waiting = Commands(commands, at_end=lambda: os._exit(0))
    if arguments.gpu is not None:
        see_one_gpu(arguments.gpu)

    def send(report: Report) -> None:
        try:
            reports.write(encode(report))
            reports.flush()
        except BrokenPipeError:
            os._exit(0)

    try:
        engine, ready = open_ready(arguments)
    except NanochatError as error:
        send(Refused(type(error).__name__, str(error)))
        return 1
    send(ready)
    run(Worker(engine), waiting, send)
    return 0


if __name__ == "__main__":
    sys.exit(main())
