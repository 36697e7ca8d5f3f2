"""One whole, uninterrupted run of a line, to which all others are compared."""

from collections.abc import Iterator

import pytest
from line_tools import COMMANDS, Uninterrupted, run_uninterrupted


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The tiny line."""
    return run_uninterrupted(tmp_path_factory.mktemp("tiny"), "tiny", seconds=240)


@pytest.fixture(scope="session")
def uninterrupted_demo(tmp_path_factory: pytest.TempPathFactory) -> Uninterrupted:
    """The demo: minutes."""
    return run_uninterrupted(tmp_path_factory.mktemp("demo"), "demo", seconds=1_800)


@pytest.fixture(autouse=True)
def no_process_is_left() -> Iterator[None]:
    """Whatever a test has started ends with it, and by itself."""
    COMMANDS.clear()
    yield
    for command in COMMANDS:
        command.seconds_until_gone()
