"""The core runs where nothing of the orchestrator, the web or the trackers is installed."""

import subprocess
import sys

import pytest

SCRIPT = """
import importlib, pkgutil, sys, warnings
from pathlib import Path

ABSENT = {"prefect", "fastapi", "uvicorn", "wandb", "trackio", "datasets", "s3fs", "typer", "rich",
          "matplotlib", "transformers", "tokenizers"}
# The server is the web, and what an export runs with is transformers.
OWN = ("nanochat_core.serving.", "nanochat_core.export.hub_model.")

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Refuse())
warnings.simplefilter("error")
import nanochat_core
for module in pkgutil.walk_packages(nanochat_core.__path__, "nanochat_core."):
    if not module.name.startswith(OWN):
        importlib.import_module(module.name)
assert not ABSENT & {name.partition(".")[0] for name in sys.modules}
print("ok")
"""


@pytest.mark.e2e
def test_every_module_of_the_core_imports_without_them() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout == "ok\n", done.stderr
