"""Shared by all tests: one Prefect server for the session, started by the first that asks."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server


def pytest_configure(config: pytest.Config) -> None:
    """Listen to Ctrl-C where a shell has started the tests in the background, which ignores it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A temporary server and database; heartbeats off, since they cost a second a flow."""
    home: Path = tmp_path_factory.mktemp("prefect")
    changes = {
        "PREFECT_HOME": str(home),
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "ERROR",
    }
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, temporary_settings
    from prefect.testing.utilities import prefect_test_harness

    try:
        with (
            prefect_test_harness(server_startup_timeout=60),
            temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: None}),
        ):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server, and the environment by which clients in this process find it."""
    server = S3Server(tmp_path_factory.mktemp("s3"))
    server.start()
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    try:
        yield server
    finally:
        server.remove()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@pytest.fixture
def s3_url(s3_server: S3Server) -> str:
    """A store URL in a new bucket of a real S3 server."""
    return s3_server.new_bucket()
