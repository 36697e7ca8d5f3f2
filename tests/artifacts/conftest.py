"""Fixtures of the tests of the store."""

from pathlib import Path

import pytest
from store_tools import KINDS, open_store

from nanochat_core.artifacts.store import ArtifactStore


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ArtifactStore:
    """An empty store, local and in memory."""
    return open_store(request.param, tmp_path)


@pytest.fixture
def local_store(tmp_path: Path) -> ArtifactStore:
    """An empty local store."""
    return open_store("local", tmp_path)


@pytest.fixture
def memory_store(tmp_path: Path) -> ArtifactStore:
    """An empty store in memory."""
    return open_store("memory", tmp_path)
