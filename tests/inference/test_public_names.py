"""The package itself costs nothing until a name is asked for."""

import subprocess
import sys

import pytest

import nanochat_core.inference


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, nanochat_core.inference; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_there_are_two_public_names() -> None:
    for name in nanochat_core.inference.__all__:
        assert getattr(nanochat_core.inference, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute"):
        _ = nanochat_core.inference.Engine


def test_finding_models_by_name_loads_no_torch() -> None:
    code = "import sys, nanochat_core.inference.finding; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
