"""A short run on made-up text, once in peace and once killed at random steps, and how they compare.

Both are the real job under the real launcher. What is killed is a rank, which the launcher notices,
or everything at once, as when the power fails; the next start goes on from the last checkpoint.
"""

import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import psutil

from nanochat_core import supervise
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import LOG_FILE, METRICS_FILE, PROGRESS_FILE, JobSpec
from nanochat_core.data.documents import Document, in_memory
from nanochat_core.data.recipes import TokensRecipe
from nanochat_core.data.shards import INDEX_FILE, deal_in_turn, write_shards
from nanochat_core.data.token_files import build_tokens
from nanochat_core.errors import ConfigError, JobError, JobLostError
from nanochat_core.logs import Progress
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.recipes import PretrainRecipe
from tasks.launches import JOB_FILE
from tasks.torchrun import LogTail, job_environment, run_job

Kind = Literal["rank", "group"]
Parts = dict[str, dict[str, str]]

MODULE = "nanochat_core.jobs.pretrain"
DESCRIBE_MODULE = "nanochat_core.jobs.verify_resume"
STRAIGHT, INTERRUPTED = "straight", "interrupted"
"""The folders of the two runs."""
FINISHED_CHECKPOINTS = "checkpoints/*/manifest.json"
LAST_KILL_AT = 0.75
"""Of all steps: later than this, a run could reach its end before the kill reaches it."""
MORE_SECONDS = 0.02
POLL_SECONDS = 0.002
_RESUMED = re.compile(r"resumed after step (\d+)")
LINES = "metrics lines"
LOSSES = "losses"
"""Logged losses are summed over ranks in no fixed order, unlike gradients: only an equal number
of ranks logs equal bits."""


@dataclass(frozen=True)
class Kill:
    """A SIGKILL, so long after a step was written down."""

    kind: Kind
    step: int
    more_seconds: float

    def __str__(self) -> str:
        return f"{'a rank' if self.kind == 'rank' else 'everything'} at step {self.step}"


@dataclass(frozen=True)
class Trial:
    """What is run twice. `ranks` holds one number for each start; the last one stays."""

    recipe: PretrainRecipe
    execution: Execution
    vocab_size: int
    num_steps: int
    kills: tuple[Kill, ...]
    ranks: tuple[int, ...] = (1,)

    def execution_of(self, start: int) -> Execution:
        """Where and how the run goes when it is started for the `start`-th time, from 0."""
        ranks = self.ranks[min(start, len(self.ranks) - 1)]
        return self.execution.model_copy(update={"ranks": ranks})


@dataclass(frozen=True)
class Compared:
    """One part of both runs."""

    name: str
    straight: dict[str, str]
    interrupted: dict[str, str]

    @property
    def different(self) -> list[str]:
        """Names whose values are not equal, or that only one of the runs has."""
        names = dict.fromkeys([*self.straight, *self.interrupted])
        return [n for n in names if self.straight.get(n) != self.interrupted.get(n)]


@dataclass
class Told:
    """What one run has to say of itself."""

    seconds: float = 0.0
    killed: list[str] = field(default_factory=list)
    resumed_after: list[int] = field(default_factory=list)

    def note_resume(self, lines: Sequence[str]) -> None:
        """Take the step from the log of one start; all ranks write the same."""
        found = [match for line in lines if (match := _RESUMED.search(line))]
        self.resumed_after += [int(match[1]) for match in found[:1]]


def draw_kills(
    count: int, num_steps: int, choose: random.Random, *, first: int
) -> tuple[Kill, ...]:
    """Kills of a rank and of everything in turn, each at a random step of its part of the run."""
    steps = range(first, int(num_steps * LAST_KILL_AT) + 1)
    if len(steps) < count:
        raise ConfigError(
            f"{num_steps} steps have no room for {count} kills between step {first} (the first "
            f"checkpoint is behind it) and {steps.stop - 1}; give more steps"
        )
    limits = [steps.start + len(steps) * part // max(count, 1) for part in range(count + 1)]
    kinds: tuple[Kind, Kind] = ("rank", "group")
    return tuple(
        Kill(kinds[part % 2], choose.randrange(low, high), choose.uniform(0, MORE_SECONDS))
        for part, (low, high) in enumerate(pairwise(limits))
    )


def make_inputs(folder: Path, vocab_size: int, num_tokens: int) -> dict[str, str]:
    """Shards, tokenizer and token files of made-up words; returns their folders by name."""
    folders = {name: folder / name for name in ("shards", "tokenizer", "tokens")}
    for path in folders.values():
        path.mkdir(parents=True)
    texts = made_up_texts(num_tokens, num_words=2 * vocab_size)
    documents = [Document(text, held_out=i % 20 == 0) for i, text in enumerate(texts)]
    in_turn = deal_in_turn(in_memory(documents), 2, Progress(None, 0, ""))
    index = write_shards(in_turn, folders["shards"], 2)
    (folders["shards"] / INDEX_FILE).write_text(index.model_dump_json(), encoding="utf-8")
    Tokenizer.train(texts, TokenizerRecipe(vocab_size=vocab_size)).save(folders["tokenizer"])
    build_tokens(
        TokensRecipe(),
        folders["shards"],
        folders["tokenizer"],
        folders["tokens"],
        workers=1,
        progress=Progress(None, 3, "shards"),
    )
    return {name: str(path) for name, path in folders.items()}


def made_up_texts(num_tokens: int, num_words: int) -> list[str]:
    """Documents of three to 200 words, which are more than `num_tokens` in all."""
    choose = random.Random(0)
    syllables = [c + v for c in "bdfgklmnprstvz" for v in "aeiou"]
    words = ["".join(choose.choices(syllables, k=choose.randint(1, 4))) for _ in range(num_words)]
    weights = [1 / rank for rank in range(1, num_words + 1)]  # Zipf's law, as in any language
    texts, count = list[str](), 0
    while count < num_tokens or len(texts) < 100:
        length = choose.randint(3, 200)
        texts.append(" ".join(choose.choices(words, weights, k=length)))
        count += length
    return texts


def run(trial: Trial, inputs: dict[str, str], folder: Path, kills: Sequence[Kill]) -> Told:
    """Run the job in `folder` to its end, through these kills; raises what else ends it."""
    told, started = Told(), time.monotonic()
    for start, kill in enumerate([*kills, None]):
        spec = prepare(trial, inputs, folder, start)
        log_tail = LogTail(folder / "work" / LOG_FILE)
        killer = Killer(Path(spec.work_folder), kill) if kill else None
        try:
            with killer or nullcontext():
                run_job(MODULE, spec, report=Silent())
        except JobLostError:
            if killer is None or not killer.has_struck:
                raise
            told.killed.append(str(kill))
            continue
        finally:
            told.note_resume(log_tail.new_lines())
        if kill is not None:
            raise JobError(
                f"the run was over before the kill of {kill} reached it; give it more steps"
            )
    told.seconds = time.monotonic() - started
    return told


def prepare(trial: Trial, inputs: dict[str, str], folder: Path, start: int) -> JobSpec:
    """The job of one start: what earlier starts have saved, and an empty output folder."""
    work, output = folder / "work", folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    for path in (work, output):
        path.mkdir(parents=True, exist_ok=True)
    return JobSpec(
        station="pretrain",
        recipe=trial.recipe.model_dump(mode="json"),
        execution=trial.execution_of(start),
        inputs=inputs,
        work_folder=str(work),
        output_folder=str(output),
    )


class Silent:
    """Hears what the launcher reports; the log file has it all."""

    def progress(self, done: int, total: int, unit: str, message: str) -> None:
        """Nobody looks on."""

    def log(self, level: int, line: str) -> None:
        """It is in the log file."""


class Killer:
    """Watches a run from a thread, as a context, and kills when its moment has come."""

    def __init__(self, work: Path, kill: Kill) -> None:
        self.work, self.kill, self.has_struck = work, kill, False
        self._mark = str(work.resolve())
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        # What an earlier start had done must not count as this one's.
        (self.work / PROGRESS_FILE).unlink(missing_ok=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        if not self._wait_for((self.work / PROGRESS_FILE).exists):
            return
        victims = self._victims()  # found beforehand: looking through all processes takes a while
        if self._wait_for(self._is_due):
            time.sleep(self.kill.more_seconds)
            for victim in victims:
                with suppress(psutil.Error):
                    victim.kill()
                    self.has_struck = True

    def _wait_for(self, condition: Callable[[], bool]) -> bool:
        while not condition():
            if self._is_over.wait(POLL_SECONDS):
                return False
        return True

    def _is_due(self) -> bool:
        path = self.work / METRICS_FILE
        steps = path.read_bytes().count(b"\n") if path.exists() else 0
        return steps >= self.kill.step and any(self.work.glob(FINISHED_CHECKPOINTS))

    def _victims(self) -> list[psutil.Process]:
        """One rank; or the supervisor, torchrun and all ranks, in that order."""
        marked = supervise.marked_processes(self._mark)
        if self.kill.kind == "rank":
            return [process for process in marked if _is_rank(process)][-1:]
        children = psutil.Process().children()
        return [child for child in children if self._mark in _words(child)] + marked


def _is_rank(process: psutil.Process) -> bool:
    # torchrun names the module, too, but is no rank; nor are the helpers of a rank's compiler.
    words = _words(process)
    with suppress(psutil.Error):
        return MODULE in words and "LOCAL_RANK" in process.environ()
    return False


def _words(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def describe(folder: Path) -> Parts:
    """Hashes of everything that a finished run in `folder` amounts to."""
    job_file = folder / "work" / JOB_FILE
    done = subprocess.run(
        [sys.executable, "-m", DESCRIBE_MODULE, str(job_file)],
        env=job_environment(JobSpec.load(job_file)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise JobError(f"the run in {folder} cannot be described: {done.stderr.strip()[-2000:]}")
    parts: Parts = json.loads(done.stdout)
    return parts


def compare(straight: Path, interrupted: Path) -> list[Compared]:
    """Both runs, part by part; without the logged losses if the number of ranks has changed."""
    jobs = [JobSpec.load(folder / "work" / JOB_FILE) for folder in (straight, interrupted)]
    left, right = describe(straight), describe(interrupted)
    num_steps = jobs[0].recipe["num_iterations"]
    if left[LINES] != {f"step {step}": str(step) for step in range(1, num_steps + 1)}:
        raise JobError(f"the run without kills did not log steps 1 to {num_steps} once each")
    has_other_ranks = jobs[0].execution.ranks != jobs[1].execution.ranks
    return [
        Compared(name, left[name], right.get(name, {}))
        for name in left
        if not (has_other_ranks and name == LOSSES)
    ]
