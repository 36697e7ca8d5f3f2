"""Speed of the station tokens, as one line of JSON: megabytes of text a second.

Without options: the documentation of this Python, mixed and repeated to one shard of 64 MB, under
a vocabulary of 8,192 learnt from it. Everything is measured from the shard to files on disk, by
one process, and by several in turn with it; the processes are there before the clock starts.
"""

import argparse
import json
import logging
import os
import platform
import random
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from nanochat_core.config.job import StageOutput
from nanochat_core.data.documents import Document
from nanochat_core.data.harvest import harvest
from nanochat_core.data.mixing import Dealt
from nanochat_core.data.recipes import HarvestSource, TokensRecipe
from nanochat_core.data.shards import INDEX_FILE, ShardIndex, write_shards
from nanochat_core.data.token_files import build_tokens
from nanochat_core.data.tokenizing import read_documents_of
from nanochat_core.data.workers import process_pool
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.logs import Progress, configure_logging
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer

EXIT_ERROR, EXIT_CONFIG = 1, 2
LEARNT_CHARACTERS = 20_000_000
EPILOG = """\
figures:
  megabytes_per_second      of text, by one process; the median of the rounds
  megabytes_per_cpu_second  the same by processor time, whatever else the machine does
  ratio                     how many times as fast several are: the median of the rounds' ratios
  pool_start_seconds        from nothing until the processes are ready, which is in neither
  peak_memory_bytes         resident memory of a process that tokenizes, its code included
  memory_growth_bytes       how much of that came with the text

examples:
  nanochat bench tokens
  nanochat bench tokens --megabytes 256 --processes 4
  nanochat bench tokens --shards FOLDER --tokenizer FOLDER
"""


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(
        prog="nanochat bench tokens",
        description=__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    text = made.add_argument_group("text")
    text.add_argument("--shards", metavar="FOLDER", type=Path, help="an artifact of shards instead")
    text.add_argument(
        "--tokenizer", metavar="FOLDER", type=Path, help="one that is there; default: learnt"
    )
    text.add_argument("--megabytes", type=float, default=64, help="of made-up text, default 64")
    text.add_argument("--vocab-size", type=int, default=8192, help="learnt, default 8192")
    how = made.add_argument_group("how it is measured")
    how.add_argument("--processes", type=int, default=2, help="beside one, default 2")
    how.add_argument("--rounds", type=int, default=3, help="of both, default 3")
    how.add_argument("--out", metavar="FILE", help="write the line here, too")
    return made


def check(options: argparse.Namespace) -> None:
    """Refuse numbers that nothing can be measured with."""
    for name, least in (("processes", 2), ("rounds", 1), ("megabytes", 0.01)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name} {getattr(options, name)}; give {least} or more")


def made_up_shards(folder: Path, megabytes: float) -> None:
    """One train shard of this size, out of the documentation of this Python, in mixed order."""
    found = harvest(
        HarvestSource(versions={}, python=""),
        validation_percent=2,
        max_documents=0,
        workers=1,
        progress=Progress(None, 0, ""),
    )
    folder.mkdir(parents=True)
    dealt = (
        Dealt(int(document.held_out), 0, document.text)
        for document in repeated(found.documents, int(megabytes * 1e6))
    )
    index = write_shards(dealt, folder, 1)
    (folder / INDEX_FILE).write_text(index.model_dump_json(), encoding="utf-8")


def repeated(documents: Sequence[Document], text_bytes: int) -> Iterator[Document]:
    """One held-out document, and train documents over and over, each time in another order."""
    choose = random.Random(0)
    train = [document for document in documents if not document.held_out]
    yield next(document for document in documents if document.held_out)
    while text_bytes > 0:
        for document in choose.sample(train, len(train)):
            if text_bytes > 0:
                yield document
            text_bytes -= len(document.text.encode())


def learnt_tokenizer(shards: Path, vocab_size: int) -> Tokenizer:
    """A vocabulary of the first of the text."""
    documents = (
        document
        for name in ShardIndex.load(shards).train
        for document in read_documents_of(shards / name)
    )
    recipe = TokenizerRecipe(vocab_size=vocab_size, max_characters=LEARNT_CHARACTERS)
    return Tokenizer.train(documents, recipe)


Item = TypeVar("Item")
Result = TypeVar("Result")


class WarmPool:
    """Processes that are ready, as the map of the station; it notes the results."""

    def __init__(self, pool: Executor, processes: int) -> None:
        self.processes, self._pool, self.results = processes, pool, list[Any]()
        started = time.perf_counter()
        # As long as one of them sleeps, another takes the next.
        list(pool.map(resident_bytes, [0.2] * processes))
        self.start_seconds = max(time.perf_counter() - started - 0.2, 0.0)

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        workers: int,  # noqa: ARG002  as the pool has
    ) -> Iterator[Result]:
        """Results in the order of `items`."""
        for result in self._pool.map(function, items):
            self.results.append(result)
            yield result

    @property
    def text_bytes(self) -> int:
        """Of the pieces that it has tokenized."""
        return sum(result.text_bytes for result in self.results)

    def resident_bytes(self) -> int:
        """The most memory that one process of it has had."""
        return self._pool.submit(resident_bytes, 0.0).result()

    def cpu_seconds(self) -> float:
        """Processor time of one process of it, and of this one."""
        return self._pool.submit(time.process_time).result() + time.process_time()


def resident_bytes(pause_seconds: float) -> int:
    """The most memory that this process has had, after a pause."""
    time.sleep(pause_seconds)
    status = Path("/proc/self/status")
    if status.exists():
        # getrusage tells the peak of the process that started this one, if that is higher.
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return int(lines["VmHWM"].split()[0]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Kilobytes but on a Mac, where it is bytes: getrusage(2) of each.
    return peak * (1 if sys.platform == "darwin" else 1024)


@dataclass
class Subject:
    """What is tokenized, and what came out of it the last time."""

    shards: Path
    tokenizer: Path
    output: Path
    made: StageOutput | None = None

    def megabytes_per_second(self, pool: WarmPool) -> float:
        """One run, from shards to files."""
        pool.results.clear()
        with tempfile.TemporaryDirectory(dir=self.output) as folder:
            started = time.perf_counter()
            self.made = build_tokens(
                TokensRecipe(),
                self.shards,
                self.tokenizer,
                Path(folder),
                workers=pool.processes,
                progress=Progress(None, 0, ""),
                mapped=pool,
            )
            seconds = time.perf_counter() - started
        return pool.text_bytes / 1e6 / seconds


def measure(subject: Subject, *, processes: int, rounds: int) -> dict[str, Any]:
    """One process and several, in turn; what both make is the same."""
    with process_pool(1) as one, process_pool(processes) as several:
        alone, together = WarmPool(one, 1), WarmPool(several, processes)
        before, cpu_seconds, pairs = alone.resident_bytes(), list[float](), []
        for _ in range(rounds):
            started = alone.cpu_seconds()
            single = subject.megabytes_per_second(alone)
            cpu_seconds.append(alone.cpu_seconds() - started)
            pairs.append((single, subject.megabytes_per_second(together)))
        peak = alone.resident_bytes()
        ratios = [both / single for single, both in pairs]
        text_bytes = alone.text_bytes
    return {
        "megabytes_per_second": round(statistics.median(single for single, _ in pairs), 2),
        "megabytes_per_cpu_second": round(text_bytes / 1e6 / statistics.median(cpu_seconds), 2),
        "processes": processes,
        "megabytes_per_second_together": round(statistics.median(both for _, both in pairs), 2),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "pool_start_seconds": round(together.start_seconds, 2),
        "peak_memory_bytes": peak,
        "memory_growth_bytes": peak - before,
        "text_bytes": text_bytes,
    }


def report_of(options: argparse.Namespace) -> dict[str, Any]:
    """Measure what was asked for."""
    check(options)
    with tempfile.TemporaryDirectory() as folder:
        shards, tokenizer = options.shards, options.tokenizer
        if shards is None:
            shards = Path(folder) / "shards"
            made_up_shards(shards, options.megabytes)
        if tokenizer is None:
            tokenizer = Path(folder) / "tokenizer"
            learnt_tokenizer(shards, options.vocab_size).save(tokenizer)
        subject = Subject(shards, tokenizer, Path(folder))
        report = measure(subject, processes=options.processes, rounds=options.rounds)
        return {**report, **describe(subject), "rounds": options.rounds}


def describe(subject: Subject) -> dict[str, Any]:
    """Everything that tells this run from others."""
    metrics = subject.made.metrics if subject.made else {}
    return {
        **{name: metrics[name] for name in ("train_documents", "train_tokens", "bytes_per_token")},
        "vocab_size": Tokenizer.load(subject.tokenizer).vocab_size,
        "shards": len(ShardIndex.load(subject.shards).train) + 1,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "tiktoken": version("tiktoken"),
    }


def main(argv: Sequence[str]) -> int:
    """Measure and print one line; the exit code is 2 for a mistake in the options."""
    options = parser().parse_args(argv)
    try:
        line = json.dumps(report_of(options)) + "\n"
    except NanochatError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_CONFIG if isinstance(error, ConfigError) else EXIT_ERROR
    if options.out:
        Path(options.out).write_text(line, encoding="utf-8")
    sys.stdout.write(line)
    return 0


if __name__ == "__main__":
    configure_logging()
    logging.getLogger("rustbpe").setLevel(logging.WARNING)  # a line for every percent
    sys.exit(main(sys.argv[1:]))
