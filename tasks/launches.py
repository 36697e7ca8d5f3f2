"""A job on several machines: what its first one tells the others, through one file system.

The first machine runs the flow or the command, and torchrun with the meeting place of all.
Beside the job it keeps `launch.json`, from which `nanochat join` on the others knows when to start
torchrun for the same job, when to start it again, and when to end.
"""

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from nanochat_core import errors
from nanochat_core.config.base import Config
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import ERROR_FILE, JobSpec

JOB_FILE = "job.json"
LAUNCH_FILE = "launch.json"
DONE = "done"
SPARE_SECONDS = 2.0
"""For launchers elsewhere to see a file, and for processes to go."""
_ENDPOINT = re.compile(r"(?P<host>\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5})")
_ID = re.compile(r"[\w.-]+")
_RUN = "work/"
_PLACES = tuple(
    f"{folder}{LAUNCH_FILE}" for folder in ("", _RUN, f"*/*/{_RUN}", f"inprogress/*/*/*/{_RUN}")
)
"""Where jobs may be below a folder: in itself, runs by hand (kind/tag), and those of a store."""


class Launch(Config):
    """`launch.json`: one start of a job; a later start has a higher number."""

    number: int
    module: str
    rendezvous_id: str
    torch: str
    ended: str = ""
    """Empty while it runs, then `done` or the class of the error that ended it."""
    message: str = ""

    @classmethod
    def of(cls, work: Path) -> "Launch | None":
        """The newest launch of a work folder, if there was one."""
        try:
            return cls.model_validate_json((work / LAUNCH_FILE).read_bytes())
        except (FileNotFoundError, ValidationError):
            return None

    def save(self, work: Path) -> None:
        """Write it in one piece: the other machines are reading."""
        temporary = work / f"{LAUNCH_FILE}.tmp"
        temporary.write_text(self.model_dump_json(), encoding="utf-8")
        os.replace(temporary, work / LAUNCH_FILE)


def check_nodes(label: str, execution: Execution) -> None:
    """Refuse several machines that cannot find each other; one machine needs nothing."""
    if execution.nodes == 1:
        return
    given = f"{label}.nodes={execution.nodes}"
    endpoint = _ENDPOINT.fullmatch(execution.rendezvous_endpoint)
    if not endpoint or not 0 < int(endpoint["port"]) < 65_536:
        raise errors.ConfigError(
            f"{given} with rendezvous_endpoint={execution.rendezvous_endpoint!r}: expected "
            "host:port, where host is the name or address of this machine by which the others "
            "reach it, as in node01:29500"
        )
    if not _ID.fullmatch(execution.rendezvous_id):
        raise errors.ConfigError(
            f"{given} with rendezvous_id={execution.rendezvous_id!r}: expected a name that only "
            "this run has, of letters, digits, dots and dashes, as in the id of a SLURM job"
        )


def rendezvous_host(execution: Execution) -> str:
    """The name or address of the first machine, as the others know it."""
    return execution.rendezvous_endpoint.rpartition(":")[0].strip("[]")


@contextmanager
def announced(
    spec: JobSpec, module: str, say: Callable[[str], None] = lambda _: None
) -> Iterator[None]:
    """Tell the other machines of a launch, and afterwards how it ended; nothing for one machine."""
    if spec.execution.nodes == 1:
        yield
        return
    work = Path(spec.work_folder)
    before = Launch.of(work)
    if before is not None and before.ended != DONE:
        _let_others_end(work, spec.execution, say)
    # Else the others would take it for an error of the launch that they are about to join.
    (work / ERROR_FILE).unlink(missing_ok=True)
    launch = Launch(
        number=1 if before is None else before.number + 1,
        module=module,
        rendezvous_id=spec.execution.rendezvous_id,
        torch=version("torch"),
    )
    launch.save(work)
    ended, message = DONE, ""
    try:
        yield
    except BaseException as error:
        ended, message = type(error).__name__, str(error)
        raise
    finally:
        launch.model_copy(update={"ended": ended, "message": message}).save(work)


def _let_others_end(work: Path, execution: Execution, say: Callable[[str], None]) -> None:
    """Wait while ranks of the launch before may live on other machines, and tell errors here.

    Once an error is told, their launchers give them the grace to end, and to save once more.
    """
    limit = 2 * execution.grace_seconds + SPARE_SECONDS
    seconds_ago = time.time() - (work / LAUNCH_FILE).stat().st_mtime
    seconds = min(max(limit - seconds_ago, 0.0), limit)
    if seconds:
        say(f"waiting {seconds:.0f} s for ranks of the last start to end on the other machines")
    time.sleep(seconds)


def ended_as(launch: Launch) -> errors.NanochatError:
    """The error that ended a launch; a Ctrl-C of the first machine is a stop."""
    kind = getattr(errors, launch.ended, None)
    if isinstance(kind, type) and issubclass(kind, errors.NanochatError):
        return kind(f"on the first machine: {launch.message}")
    return errors.JobStoppedError(f"the job was stopped on its first machine ({launch.ended})")


def find_launches(place: Path, rendezvous_id: str = "") -> dict[Path, Launch]:
    """Work folders at or below a place, with their newest launches of that id, if one is given."""
    if place.name == JOB_FILE:
        works = [place.parent]
    else:
        works = [path.parent for pattern in _PLACES for path in place.glob(pattern)]
    found = ((work, Launch.of(work)) for work in works)
    return {
        work: launch
        for work, launch in found
        if launch is not None and rendezvous_id in ("", launch.rendezvous_id)
    }
