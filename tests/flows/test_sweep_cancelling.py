"""A sweep that is cancelled at the server, between the stages of its points, too."""

import signal
import time
from pathlib import Path

import pytest
from finished_runs import finish, open_store
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.runtime import flow_run
from prefect.states import Cancelling, Running

from flows.sweeps import making
from flows.sweeps.listening import SweepListener
from flows.sweeps.making import Sweep
from flows.sweeps.parameters import parse_sweep
from nanochat_core.errors import JobStoppedError
from tasks.listening import listening
from tests.tasks.test_cancelling import terminations


class CancelledMeanwhile(SweepListener):
    """Cancels the sweep at the server when its first point starts, and waits for what comes."""

    def __init__(self, signals: list[int]) -> None:
        self.signals = signals

    def point_started(self, label: str) -> None:
        """Ends the sweep as the signal would, whether it comes or not."""
        deadline = time.monotonic() + 10
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(flow_run.id, Cancelling(), force=True)
            while not self.signals and time.monotonic() < deadline:
                time.sleep(0.02)
            client.set_flow_run_state(flow_run.id, Running(), force=True)
        raise JobStoppedError(label)


@pytest.mark.prefect
@pytest.mark.usefixtures("prefect_server")
def test_a_sweep_that_is_cancelled_at_the_server_gets_sigterm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(making, "ASK_SECONDS", 0.2)
    store = open_store(tmp_path)
    finish(store)
    asked = {"preset": "tiny", "store": store.url, "vary": {"pretrain.seed": (1, 2)}}

    @flow(name="a sweep", persist_result=False)
    def points() -> list[int]:
        with terminations() as signals, listening(CancelledMeanwhile(signals)):
            with pytest.raises(JobStoppedError):
                Sweep(parse_sweep("sweep", asked)).make_points()
            return signals

    assert points() == [signal.SIGTERM]
