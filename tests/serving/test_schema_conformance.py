"""The API's description of itself: true by what schemathesis finds, and changed by intent only."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_tools import SUM, Running, save_folders, started

from nanochat_core.serving.app import create_app
from nanochat_core.serving.catalog import Catalog
from nanochat_core.serving.pool import ModelPool
from nanochat_core.serving.settings import ServerSettings

HOOKS_FOLDER = Path(__file__).parent
SURFACE = HOOKS_FOLDER / "api_surface.json"
SECONDS_ALLOWED = 240


def surface() -> dict[str, Any]:
    """Every path with its answers, and every shape with its fields; + marks those that must be."""
    settings = ServerSettings()
    described = create_app(settings, ModelPool(Catalog(), settings)).openapi()
    paths = {
        f"{method.upper()} {path}": " ".join(operation["responses"])
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    }
    shapes = {
        name: " ".join(
            f"+{field}" if field in shape.get("required", ()) else field
            for field in shape["properties"]
        )
        for name, shape in described["components"]["schemas"].items()
    }
    return {"paths": paths, "shapes": shapes}


def test_the_public_surface_is_the_one_that_was_agreed_on() -> None:
    expected = json.loads(SURFACE.read_text(encoding="utf-8"))
    given = surface()
    # After an intended change: write `given` to the file, and tell CHANGELOG.md.
    assert given == expected, json.dumps(given, indent=2)


def test_no_error_has_the_shape_of_the_framework() -> None:
    settings = ServerSettings()
    described = create_app(settings, ModelPool(Catalog(), settings)).openapi()
    assert "HTTPValidationError" not in json.dumps(described)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with started(save_folders(tmp_path, *SUM)) as running:
        yield running


@pytest.mark.e2e
def test_schemathesis_finds_no_server_error_and_no_violation_of_the_schema(
    server: Running, tmp_path: Path
) -> None:
    # What fits the schema is to be answered, too, once turns and tokens fit (the hooks see to it).
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}openapi.json"),
        *("--checks", "all", "--max-examples", "40", "--seed", "1", "--no-color"),
    ]
    environ = {**os.environ, "SCHEMATHESIS_HOOKS": "schemathesis_hooks"}
    environ["PYTHONPATH"] = str(HOOKS_FOLDER)
    found = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=SECONDS_ALLOWED, env=environ
    )
    assert found.returncode == 0, found.stdout + found.stderr
    # It got beyond what the door refuses.
    numbers = httpx.get(f"{server.url}metrics").text
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/models/{name}"):
        answered = f'nanochat_http_responses_total{{path="{path}",status="200"}} '
        (line,) = [line for line in numbers.splitlines() if line.startswith(answered)]
        assert float(line.split()[-1]) >= 5, line
    assert not [line for line in numbers.splitlines() if 'status="5' in line]
