"""The station `report` against a real Prefect server and a real store."""

import base64
import io
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from report_tools import RUN, publish_line

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.execution import Execution
from nanochat_core.report.recipe import ReportRecipe
from tasks.listening import Listener, StageRecord
from tasks.report import report
from tasks.stage import Run, StageCall

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]


def run_report(store: ArtifactStore, refs: dict[str, ArtifactRef], state: Any = "made") -> Run:
    """Run the station after others that went as `state` says."""
    run = Run(store, Listener(), provenance=RUN)
    for name, ref in refs.items():
        run.records[name] = StageRecord(station=name, state=state, seconds=1.0, ref=ref)

    @flow
    def line() -> ArtifactRef:
        return report(StageCall(run, ReportRecipe(), Execution()), refs)

    line()
    return run


def shown_pages() -> list[str]:
    """Every version of the report's page at the server, the newest last."""
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(
            artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=["report"]))
        )
    found.sort(key=lambda artifact: artifact.created)
    return [str(artifact.data) for artifact in found]


def test_the_report_is_shown_with_its_plots_and_with_the_stages_of_each_run(
    tmp_path: Path,
) -> None:
    store = ArtifactStore(str(tmp_path / "store"))
    refs = publish_line(store, tmp_path / "work")
    made = run_report(store, refs).records["report"]
    again = run_report(store, refs, "cached").records["report"]
    assert (made.state, again.state) == ("made", "cached")
    assert made.ref == again.ref
    assert made.metrics == {"sections": 7, "plots": 4}
    first, second = shown_pages()
    for page in (first, second):
        images = re.findall(r"!\[[^]]+\]\(data:image/png;base64,([^)]+)\)", page)
        assert len(images) == 4
        for image in images:
            assert Image.open(io.BytesIO(base64.b64decode(image))).format == "PNG"
        assert len(page) < 500_000
    assert (first.count("| made |"), first.count("| cached |")) == (10, 0)
    assert (second.count("| made |"), second.count("| cached |")) == (0, 10)


def test_inputs_that_the_report_does_not_read_are_not_fetched(tmp_path: Path) -> None:
    store = ArtifactStore("memory://report-inputs", cache_folder=tmp_path / "cache")
    refs = publish_line(store, tmp_path / "work")
    run_report(store, refs)
    fetched = {path.name for path in (tmp_path / "cache").glob("*/copies/[a-z]*")}
    assert fetched == {*refs, "report"} - {"shards", "tokenizer", "tokens"}
