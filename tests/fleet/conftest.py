"""One Prefect server for all tests of the fleet, made ready as a user would do it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_tools import Machines, PrefectServer
from s3_server import S3Server


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectServer]:
    """A real server after `nanochat bootstrap`."""
    server = PrefectServer(tmp_path_factory.mktemp("server"))
    try:
        server.start()
        server.bootstrap()
        yield server
    finally:
        server.remove()


@pytest.fixture
def machines(fleet: PrefectServer, s3_server: S3Server, tmp_path: Path) -> Iterator[Machines]:
    """Workers with homes and folders of their own; whatever is left of them ends with the test."""
    found = Machines(fleet, s3_server, tmp_path)
    yield found
    found.remove()
