"""What a run leaves on Prefect's pages: progress, its report, its lineage, and its model."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from nanochat_core.artifacts.types import ArtifactRef
from tasks.listening import StageRecord

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

MODEL = ArtifactRef(station="rl", fingerprint="a" * 64, digest="b" * 64, manifest=1)
TEXT = ArtifactRef(station="shards", fingerprint="c" * 64, digest="d" * 64, manifest=1)
RECORDS = [
    StageRecord(station="shards", state="cached", seconds=0.25, ref=TEXT),
    StageRecord(
        station="rl", state="resumed", seconds=3700, ref=MODEL, metrics={"rl/reward_end": 0.5}
    ),
    StageRecord(station="chat_eval_rl", state="failed", seconds=1, message="a | b\nmore"),
    StageRecord(station="release", state="made", seconds=0.1, ref=MODEL, message="latest -> rl"),
]


def in_a_run(function: Callable[[], object]) -> None:
    """Call it as stages are: inside of a flow run."""
    from prefect import flow

    flow(name="page", persist_result=False)(function)()


def answer(key: str) -> httpx.Response:
    """What the server says of the newest artifact with this key, as its pages ask for it."""
    from prefect.settings import get_current_settings

    return httpx.get(f"{get_current_settings().api.url}/artifacts/{key}/latest", timeout=30)


def artifact(key: str) -> dict[str, Any]:
    """The newest artifact with this key."""
    found: dict[str, Any] = answer(key).raise_for_status().json()
    return found


def test_the_report_of_a_run_says_how_every_stage_went() -> None:
    from tasks.reporting import publish_run_report

    in_a_run(lambda: publish_run_report("run-7", RECORDS))
    report = artifact("run-report")
    assert report["description"] == "run run-7: 1 cached, 1 resumed, 1 failed, 1 made."
    lines = report["data"].splitlines()
    assert "| rl | resumed | 1 h 01 m | rl/aaaaaaaa | rl/reward_end 0.5 |" in lines
    assert "| chat_eval_rl | failed | 1.0 s |  | a \\| b |" in lines


def test_the_lineage_has_a_row_for_each_artifact_that_a_station_made() -> None:
    from tasks.reporting import lineage_rows, publish_run_report

    in_a_run(lambda: publish_run_report("run-8", RECORDS))
    assert "rl/aaaaaaaa" in artifact("lineage")["data"]
    assert [(row["station"], row["went"], row["digest"]) for row in lineage_rows(RECORDS)] == [
        ("shards", "cached", TEXT.digest),
        ("rl", "resumed", MODEL.digest),
    ]


def test_the_model_is_linked_with_the_commands_that_make_it_answer() -> None:
    from tasks.reporting import publish_model

    in_a_run(lambda: publish_model(MODEL, "s3://bucket/my store", ["tiny", "latest"]))
    found = artifact("model")
    assert f"s3://bucket/my store/rl/{MODEL.fingerprint}" in found["data"]
    assert "also called `tiny` and `latest`" in found["description"]
    assert "`nanochat chat rl/aaaaaaaa --store 's3://bucket/my store'`" in found["description"]


@pytest.mark.parametrize(
    ("store", "link"), [("/data/store", "file:///data/store/rl/"), ("s3://b/x/", "s3://b/x/rl/")]
)
def test_a_link_to_an_artifact_is_a_url(store: str, link: str) -> None:
    from tasks.reporting import model_link

    assert model_link(MODEL, store) == link + MODEL.fingerprint


def test_a_bar_that_is_shown_ends_full_and_a_short_stage_has_none() -> None:
    from tasks import reporting

    short = reporting.ProgressBar("tokenizer")
    short.update(1, 1, "files", "")
    assert answer("tokenizer-progress").status_code == httpx.codes.NOT_FOUND
    bar = reporting.ProgressBar("chat_eval_rl")
    bar._last_update = time.monotonic() - reporting.UPDATE_SECONDS
    shown = []

    def work() -> None:
        bar.update(1, 8, "questions", "")
        bar.update(2, 8, "questions", "")
        shown.append(artifact("chat-eval-rl-progress")["data"])
        bar.update(8, 8, "questions", "")
        bar.update(8, 8, "questions", "again")
        shown.append(artifact("chat-eval-rl-progress")["data"])

    in_a_run(work)
    assert [float(percent) for percent in shown] == [12.5, 100.0]
    assert artifact("chat-eval-rl-progress")["description"] == "chat_eval_rl: 8 of 8 questions."


@pytest.mark.filterwarnings("ignore:Artifact creation outside")
def test_a_server_that_is_gone_costs_a_warning_and_not_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.reporting import publish_model, publish_run_report

    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        publish_run_report("run-9", RECORDS)
        publish_model(MODEL, "/data/store", ["latest"])
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    for what in ("report of the run", "lineage of the run", "link to the model"):
        assert any(message.startswith(f"{what} not shown") for message in warnings)
