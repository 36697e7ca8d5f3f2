"""The station `sweep` against a real Prefect server and a real store."""

from pathlib import Path

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from sweep_points import Point, Published, isoflop_points, publish_points

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.config.execution import Execution
from tasks.listening import Listener
from tasks.stage import Run, StageCall
from tasks.sweep import sweep

pytestmark = [pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

DEPTHS = tuple(Point({"depth": d}, 2.6 - d / 10, depth=d) for d in (1, 2, 3))


def run_sweep(folder: Path, made: Published) -> Run:
    run = Run(ArtifactStore(str(folder / "store")), Listener())

    @flow
    def line() -> ArtifactRef:
        return sweep(StageCall(run, made.recipe, Execution()), made.refs)

    line()
    return run


def shown_pages() -> list[str]:
    """Every page of a sweep at the server, the newest last."""
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter(key=ArtifactFilterKey(any_=["sweep-report"]))
        found = client.read_artifacts(artifact_filter=wanted)
    found.sort(key=lambda artifact: artifact.created)
    return [str(artifact.data) for artifact in found]


def test_a_sweep_is_made_once_shown_with_its_plots_and_made_anew_for_another_point(
    tmp_path: Path,
) -> None:
    two = publish_points(tmp_path, DEPTHS[:2], kind="miniseries")
    states = [run_sweep(tmp_path, two).records["sweep"].state for _ in range(2)]
    three = publish_points(tmp_path, DEPTHS, kind="miniseries")
    last = run_sweep(tmp_path, three).records["sweep"]
    assert (states, last.state) == (["made", "cached"], "made")
    assert last.metrics == {"points": 3, "lowest val/bpb": pytest.approx(2.3)}
    pages = shown_pages()
    assert len(pages) == 3
    assert all(page.count("](data:image/png;base64,") == 3 for page in pages)


def test_the_page_of_scaling_laws_has_their_plots_and_the_artifact_their_numbers(
    tmp_path: Path,
) -> None:
    before = len(shown_pages())
    run = run_sweep(
        tmp_path, publish_points(tmp_path, isoflop_points(), kind="scaling_laws", failed=("x",))
    )
    ref = run.records["sweep"].ref
    assert ref is not None
    manifest = run.store.manifest(ref)
    plots = {"isoflop.png", "optimum.png", "curves.png"}
    texts = {"sweep.md", "table.csv", "table.txt", "laws.csv"}
    assert {file.path for file in manifest.files if file.role == "record"} == plots | texts
    assert [file.path for file in manifest.files if file.role == "result"] == ["sweep.json"]
    assert manifest.metrics["failed"] == 1
    (page,) = shown_pages()[before:]
    assert page.count("](data:image/png;base64,") == 3
    assert "## Scaling laws" in page
