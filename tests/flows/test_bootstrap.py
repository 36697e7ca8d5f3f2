"""`nanochat bootstrap` against a real server: it makes what is missing, and only that."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from flows.bootstrap_command import bootstrap
from flows.cli import told

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

FILE = """
pull: []
deployments:
  - name: here
    entrypoint: flows.serve.serve
    work_pool: {name: %s}
    parameters: {port: %d}
"""
"""One deployment, in the form of deploy/prefect.yaml."""


@pytest.fixture
def client() -> Iterator[Any]:
    """A client of the server, on which nothing of ours is left from another test."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as opened:
        for automation in opened.read_automations():
            opened.delete_automation(automation.id)
        for pool in opened.read_work_pools():
            opened.delete_work_pool(pool.name)
        for limit in opened.read_global_concurrency_limits():
            opened.delete_global_concurrency_limit_by_name(limit.name)
        for deployment in opened.read_deployments():
            opened.delete_deployment(deployment.id)
        yield opened


def run(*arguments: str) -> Result:
    """The command, as the command line has it."""
    app = typer.Typer()
    app.command()(told(bootstrap))
    return CliRunner().invoke(app, arguments)


def written(folder: Path, *, pool: str = "cpu", port: int = 8000) -> str:
    file = folder / "prefect.yaml"
    file.write_text(FILE % (pool, port))
    return str(file)


def went(result: Result) -> dict[str, str]:
    """What each line is about -> made, changed or found."""
    assert result.exit_code == 0, result.output
    lines = [line.split(maxsplit=1) for line in result.output.splitlines()[1:]]
    return {what: how for how, what in lines}


def test_everything_is_made_once_and_then_found(client: Any, tmp_path: Path) -> None:
    file = written(tmp_path)
    first, again = went(run("--deployments", file)), went(run("--deployments", file))
    assert set(first.values()) == {"made"}
    assert again == dict.fromkeys(first, "found")
    assert [pool.type for pool in client.read_work_pools()] == ["process"]
    assert client.read_global_concurrency_limit_by_name("gpu").limit == 1
    (automation,) = client.read_automations()
    assert automation.trigger.within.total_seconds() == 90
    assert automation.actions[0].state == "CRASHED"
    assert client.read_deployment_by_name("serve/here").entrypoint == "flows.serve.serve"


def test_only_what_differs_is_changed_and_what_users_chose_stays(
    client: Any, tmp_path: Path
) -> None:
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate

    client.create_work_pool(WorkPoolCreate(name="cpu", type="docker"))
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=3))
    before = went(run("--deployments", written(tmp_path)))
    assert before["work pool cpu (docker)"] == "found"
    (automation,) = client.read_automations()
    client.pause_automation(automation.id)
    after = went(run("--deployments", written(tmp_path, port=8001)))
    assert after["concurrency limit gpu (3 at once)"] == "found"
    assert after["deployment serve/here"] == "changed"
    assert [automation.enabled for automation in client.read_automations()] == [False]
    assert client.read_deployment_by_name("serve/here").parameters == {"port": 8001}


def test_what_was_made_otherwise_becomes_as_it_is_asked_for(client: Any, tmp_path: Path) -> None:
    from datetime import timedelta

    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate

    from flows.bootstrap import watch

    older = watch()
    older.trigger.within = timedelta(seconds=300)
    client.create_automation(older)
    client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name="gpu", limit=3))
    lines = went(run("--deployments", written(tmp_path), "--gpu-limit", "4"))
    assert lines["concurrency limit gpu (4 at once), was 3"] == "changed"
    assert client.read_global_concurrency_limit_by_name("gpu").limit == 4
    assert [how for what, how in lines.items() if what.startswith("automation")] == ["changed"]
    (automation,) = client.read_automations()
    assert automation.trigger.within.total_seconds() == 90


def test_a_server_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        result = run()
    assert result.exit_code == 1
    assert "no Prefect server answers at http://127.0.0.1:9/api" in result.output
    with temporary_settings({PREFECT_API_URL: None}):
        result = run()
    assert result.exit_code == 1
    assert "PREFECT_API_URL=" in result.output


@pytest.mark.parametrize("content", [None, "deployments: [{name: a}]", "deployments: {", "[]"])
def test_a_file_without_deployments_is_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "other.yaml"
    if content is not None:
        file.write_text(content)
    result = run("--deployments", str(file))
    assert result.exit_code == 2
    assert str(file) in result.output
    assert "deploy/prefect.yaml" in result.output


def test_a_deployment_that_prefect_refuses_is_told_in_its_words(
    client: Any, tmp_path: Path
) -> None:
    file = tmp_path / "prefect.yaml"
    file.write_text((FILE % ("cpu", 8000)).replace("flows.serve.serve", "flows.serve.nothing"))
    result = run("--deployments", str(file))
    assert result.exit_code == 1
    assert "failed" in result.output
    assert "nothing" in result.output
