"""The flow that is a server: it starts one, tells where, and takes it along when it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from serving_tools import NAME, YES, save_folders

from flows.looking import resolve_model
from flows.serve_command import Door, server_command
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import StageOutput
from nanochat_core.errors import ArtifactNotFoundError, ConfigError
from nanochat_core.serving import app
from nanochat_core.serving.settings import ServerSettings

FLOW = "import sys; from flows.serve import serve; serve(store=sys.argv[1], port=0, device='cpu')"
START_SECONDS = 60.0
END_SECONDS = 10.0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    """A store with a scripted model as its latest."""
    folder = tmp_path_factory.mktemp("serve")
    save_folders(folder, *YES)
    opened = ArtifactStore(str(folder / "store"))
    words = publish(opened, folder / "tokenizer", "tokenizer")
    opened.set_alias("latest", publish(opened, folder / NAME, "sft", tokenizer=words))
    return opened


def publish(store: ArtifactStore, folder: Path, station: str, **inputs: ArtifactRef) -> ArtifactRef:
    digests = {name: ref.digest for name, ref in inputs.items()}
    request = Request(station=station, code_version=1, recipe={}, inputs=digests)
    output = StageOutput(files={path.name: "result" for path in folder.iterdir()})
    return store.publish(request, folder, output, input_refs=inputs, provenance={})


def test_the_command_names_the_store_and_the_model(store: ArtifactStore, tmp_path: Path) -> None:
    door = Door(port=0, device="cpu", cors_origin=("https://a.example", "https://b.example"))
    command = server_command("latest", store.url, tmp_path, door)
    assert command[1:3] == ["-m", "nanochat_core.serving.app"]
    settings = app.read_settings(app.parse_arguments(command[3:]), {})
    assert (settings.store, settings.by_hand, settings.model) == (store.url, tmp_path, "latest")
    assert (settings.port, settings.device, settings.is_exact) == (0, "cpu", False)
    assert settings.cors_origins == ("https://a.example", "https://b.example")
    exact = server_command("latest", store.url, tmp_path, Door(exact=True))
    assert app.read_settings(app.parse_arguments(exact[3:]), {}).is_exact


def test_the_command_serves_as_the_server_does_by_itself(tmp_path: Path) -> None:
    command = server_command("", "memory://", tmp_path, Door())
    plain = ServerSettings(store="memory://", by_hand=tmp_path)
    assert app.read_settings(app.parse_arguments(command[3:]), {}) == plain


def test_mistakes_are_seen_before_anything_starts(store: ArtifactStore) -> None:
    with pytest.raises(ConfigError, match="port=70000"):
        server_command("latest", store.url, Path(), Door(port=70000))
    with pytest.raises(ArtifactNotFoundError):
        resolve_model(store, "sft/0000")


class RunningFlow:
    """A process that runs the flow, with what it logs."""

    def __init__(self, store: str, log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-c", FLOW, store],
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.url = self._wait_for(r"serving latest on cpu: (http://\S+)")

    def _wait_for(self, pattern: str) -> str:
        deadline = time.monotonic() + START_SECONDS
        while (found := re.search(pattern, self.log.read_text())) is None:
            assert self.process.poll() is None, self.log.read_text()
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)
        return found[1]

    def is_serving(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}health", timeout=5) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def server(self) -> psutil.Process:
        """The server's process, a grandchild of the flow's."""
        below = psutil.Process(self.process.pid).children(recursive=True)
        [found] = [p for p in below if p.cmdline()[1:3] == ["-m", "nanochat_core.serving.app"]]
        return found


@pytest.fixture
def flow(store: ArtifactStore, prefect_server: None, tmp_path: Path) -> Iterator[RunningFlow]:
    from prefect.settings import PREFECT_API_URL

    before = os.environ.get("PREFECT_API_URL")
    os.environ["PREFECT_API_URL"] = PREFECT_API_URL.value()
    try:
        running = RunningFlow(store.url, tmp_path / "flow.log")
        yield running
        running.process.kill()
        running.process.wait()
    finally:
        if before is None:
            del os.environ["PREFECT_API_URL"]
        else:
            os.environ["PREFECT_API_URL"] = before


@pytest.mark.prefect
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_its_flow(flow: RunningFlow, number: signal.Signals) -> None:
    server = flow.server()
    assert flow.is_serving()
    flow.process.send_signal(number)
    # Raises when it is still there after that time.
    server.wait(END_SECONDS)
    assert not flow.is_serving()
    assert flow.process.wait(30) != 0


@pytest.mark.prefect
def test_the_flow_links_its_page_and_fails_when_the_server_does(flow: RunningFlow) -> None:
    api = os.environ["PREFECT_API_URL"]
    with urllib.request.urlopen(f"{api}/artifacts/serve-page/latest", timeout=10) as answer:
        assert f"]({flow.url})" in json.loads(answer.read())["data"]
    flow.server().kill()
    assert flow.process.wait(30) != 0
    assert "the server ended with exit code 137" in flow.log.read_text()
