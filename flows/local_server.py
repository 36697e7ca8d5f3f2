"""A Prefect server for one command, for people who have none running.

Prefect can start such a server itself, but one that outlives a killed command, and that dies of
the Ctrl-C that is meant for the command, so that the end of the run is never recorded. This one
runs under the supervisor: in a session of its own, for as long as this process lives.
"""

import atexit
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from nanochat_core import supervise
from nanochat_core.errors import NanochatError

STARTUP_SECONDS = 90.0
GRACE_SECONDS = 3.0
REFUSALS = (401, 403)

DEFAULTS = {
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "60",
    # The terminal belongs to the table of stages; the server gets every line.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_EXTRA_LOGGERS": "nanochat_core,tasks",
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
}
"""Settings of a command line run; what the environment says already wins."""


def has_own_server(environ: Mapping[str, str]) -> bool:
    """Whether the user points Prefect to a server, by the environment or by a profile."""
    if environ.get("PREFECT_API_URL"):
        return True
    home = Path(environ.get("PREFECT_HOME") or Path.home() / ".prefect").expanduser()
    profiles = home / "profiles.toml"
    return profiles.exists() and "PREFECT_API_URL" in profiles.read_text(encoding="utf-8")


def check_reachable(environ: Mapping[str, str]) -> None:
    """Raise NanochatError when the server that the environment names does not answer."""
    url = environ.get("PREFECT_API_URL", "")
    if not url:
        return
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10):
            return
    except (OSError, ValueError) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code in REFUSALS:
            return  # it answers, and Prefect knows the credentials
        raise NanochatError(
            f"no Prefect server answers at PREFECT_API_URL={url} ({error}); start it, or unset "
            "the variable to use a temporary one"
        ) from error


class LocalServer:
    """Starts at once, is waited for later: importing Prefect takes about as long as its start."""

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="nanochat-server-")
        self._log = Path(self._folder.name) / "server.log"
        self._url = f"http://127.0.0.1:{_free_port()}"
        self._process = subprocess.Popen(
            supervise.command_line(
                _server_command(self._url),
                log=self._log,
                grace_seconds=GRACE_SECONDS,
                mark=self._folder.name,
            ),
            stdin=subprocess.PIPE,
            start_new_session=True,
            env={**environ, "PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1"},
        )
        environ["PREFECT_API_URL"] = f"{self._url}/api"
        # Registered before Prefect is imported, so run after Prefect has sent its last lines.
        atexit.register(self.stop)

    def wait(self) -> None:
        """Return once the server answers; raises NanochatError when it does not."""
        deadline = time.monotonic() + STARTUP_SECONDS
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self._url}/api/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
        end = self._log.read_text("utf-8", "replace")[-2_000:] if self._log.exists() else ""
        raise NanochatError(
            f"Prefect's server did not start within {STARTUP_SECONDS:g} s; try again, or start "
            f"`prefect server start` yourself and set PREFECT_API_URL. Its last lines:\n{end}"
        )

    def stop(self) -> None:
        """End the server and all that is left of it."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        self._folder.cleanup()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _server_command(url: str) -> list[str]:
    port = url.rpartition(":")[2]
    return [
        *(sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app"),
        *("--host", "127.0.0.1", "--port", port, "--log-level", "error", "--lifespan", "on"),
    ]
