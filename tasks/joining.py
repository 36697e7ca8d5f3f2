"""What `nanochat join` does: run this machine's ranks of a job that another machine has started."""

import logging
import socket
import sys
import time
from importlib.metadata import version
from pathlib import Path

from nanochat_core import errors
from nanochat_core.config.job import JobSpec
from tasks.launches import DONE, JOB_FILE, Launch, ended_as, find_launches
from tasks.torchrun import (
    Report,
    end_leftovers,
    last_lines,
    mark_of,
    supervised,
    torchrun_command,
)

LOOK_SECONDS = 0.5
SETTLE_SECONDS = 10.0
"""How long the first machine may take to note the end of a launch whose ranks have ended here."""


class Joining:
    """One machine beside the first, from its start until the job has ended for good."""

    def __init__(
        self, place: Path, rendezvous_id: str, *, wait_seconds: float, report: Report
    ) -> None:
        if place.name != JOB_FILE and not rendezvous_id:
            raise errors.ConfigError(
                f"{place}: expected the {JOB_FILE} of a job, or a folder and the rendezvous id of "
                "the jobs to join there (--rdzv-id)"
            )
        self.place, self.rendezvous_id = place.absolute(), rendezvous_id
        self.wait_seconds, self.report = wait_seconds, report
        self._served: dict[Path, int] = {}
        self._last_end: errors.JobLostError | None = None

    def run(self) -> None:
        """Serve every launch; raises the error that ended the job on the first machine.

        A launch that ended with a lost rank may be followed by another one, which is waited for
        as long as for the first. With one job's file this returns when that job is done; with a
        folder it goes on to the next job, and returns when none has come for that long.
        """
        while (work := self._next_launch()) is not None:
            self._serve(work)
            self._last_end = self._end_of(work)
            if self._last_end is None and self.place.name == JOB_FILE:
                return
        if self._last_end is not None:
            raise self._last_end
        if not self._served:
            raise errors.ConfigError(
                f"nobody has launched a job {self.rendezvous_id}".rstrip()
                + f" in {self.place} within {self.wait_seconds:g} s; start the first machine with "
                "the same file system and rendezvous id, and see its log"
            )

    def _next_launch(self) -> Path | None:
        """The work folder of a launch that runs, and that this machine has not served yet."""
        deadline = time.monotonic() + self.wait_seconds
        while time.monotonic() < deadline:
            for work, launch in find_launches(self.place, self.rendezvous_id).items():
                if not launch.ended and launch.number > self._served.get(work, 0):
                    self._served[work] = launch.number
                    return work
            time.sleep(LOOK_SECONDS)
        return None

    def _serve(self, work: Path) -> None:
        """Run torchrun for this machine's ranks to its end."""
        spec, launch = JobSpec.load(work / JOB_FILE), Launch.of(work)
        assert launch is not None, "a launch that was found cannot go away while it runs"
        _check_machine(spec, launch)
        mark = mark_of(spec, joins=True)
        end_leftovers(mark, spec, self.report)
        self.report.log(logging.INFO, f"joining {spec.station}, start {launch.number}, in {work}")
        log = work / f"job-{socket.gethostname()}.log"
        command = [*torchrun_command(spec, joins=True), "-m", launch.module, str(work / JOB_FILE)]
        try:
            code = supervised(command, spec, self.report, log=log, mark=mark, look=lambda: None)
        except BaseException:
            # Asked to stop, and saved; rank 0 completes the checkpoint after that, and under SLURM
            # the end of one machine is the end of all.
            self._settled(work)
            raise
        self.report.log(logging.INFO, f"torchrun has ended here with {code}; its output: {log}")
        if code:
            for line in last_lines(log):
                self.report.log(logging.WARNING, line)

    def _end_of(self, work: Path) -> errors.JobLostError | None:
        """How the launch ended on the first machine: None if well, or why there may be another.

        Any other error is raised: it ends the job for good.
        """
        launch = self._settled(work)
        if launch is None or not launch.ended:
            return errors.JobLostError(f"the first machine has not said how {work} ended")
        # What runs there next is new, also in a folder that was cleared and counts from 1.
        self._served[work] = 0
        if launch.ended == DONE:
            return None
        error = ended_as(launch)
        if not isinstance(error, errors.JobLostError):
            raise error
        self.report.log(logging.WARNING, f"{error}\nwaiting for another start of it")
        return error

    def _settled(self, work: Path) -> Launch | None:
        """The launch after its end on the first machine, or as it is if that does not come."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (launch := Launch.of(work)) is not None and not launch.ended:
            if launch.number > self._served[work] or time.monotonic() > deadline:
                break
            time.sleep(LOOK_SECONDS)
        return launch


def _check_machine(spec: JobSpec, launch: Launch) -> None:
    """Refuse a machine that sees other files or another torch than the first one."""
    folders = [*spec.inputs.values(), spec.work_folder, spec.output_folder]
    if missing := [folder for folder in folders if not Path(folder).is_dir()]:
        raise errors.ConfigError(
            f"this machine does not see {missing[0]}, which the first one uses; all machines of a "
            "run need one file system, mounted at the same place"
        )
    if launch.torch != version("torch"):
        raise errors.ConfigError(
            f"the first machine runs torch {launch.torch} and this one {version('torch')} "
            f"({sys.executable}); install the same on both"
        )
