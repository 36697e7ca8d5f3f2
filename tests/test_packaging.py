"""What an installation promises: constraints, import places, empty initialisers, what is loaded."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import flows
import nanochat_core
import tasks

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (flows, tasks, nanochat_core)
OWN_NAME = "nanochat-flows"
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*")


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirement_name(requirement: str) -> str:
    found = _NAME.match(requirement)
    assert found, f"{requirement!r} does not start with a name"
    return normal(found[0])


def constraint_lines() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.startswith("#")]


def test_constraints_hold_for_every_platform_and_index() -> None:
    """No local builds (`+cpu`), addresses or files: a stranger's index has none of those."""
    for line in constraint_lines():
        assert "==" in line, f"{line!r} pins no version"
        assert not any(sign in line for sign in ("+", "://", "@")), line


def test_every_direct_dependency_is_constrained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        wanted += extra
    names = {requirement_name(requirement) for requirement in wanted} - {OWN_NAME}
    constrained = {requirement_name(line) for line in constraint_lines()}
    assert not names - constrained


def test_a_constraint_is_given_once_a_platform() -> None:
    lines = constraint_lines()
    assert len(lines) == len(set(lines))


def test_our_packages_are_imported_from_the_checkout() -> None:
    """`flows` and `tasks` are names that others use too: another's must never be picked up."""
    for package in PACKAGES:
        assert package.__file__ is not None
        assert Path(package.__file__).resolve().parent == ROOT / package.__name__


def test_initialisers_are_empty_so_that_importing_a_module_loads_only_that() -> None:
    exceptions = {ROOT / "nanochat_core" / "inference" / "__init__.py"}
    for package in PACKAGES:
        for path in (ROOT / package.__name__).rglob("__init__.py"):
            assert path in exceptions or not path.read_bytes(), path


def test_the_exception_loads_nothing_until_a_public_name_is_asked_for() -> None:
    script = (
        "import sys, nanochat_core.inference; "
        "sys.exit(bool({'torch', 'fsspec', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_project_cannot_be_uploaded_by_accident() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert "Private :: Do Not Upload" in project["classifiers"]
    assert project["name"] == OWN_NAME
