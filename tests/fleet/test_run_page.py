"""Prefect's pages in a real browser: the form explains itself, a run tells its story."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_runs import FlowRun
from fleet_tools import PrefectServer, Worker
from playwright.sync_api import Browser, Page, expect, sync_playwright

from flows.parameters import RunParameters
from flows.presets import PRESETS, STATIONS

BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
pytestmark = [
    pytest.mark.browser,
    pytest.mark.xdist_group("fleet"),
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on this machine"),
]
LOAD_MS = 30_000
RUN = [name for name in STATIONS if name != "benchmarks"]
PLOTS = 4


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(LOAD_MS)
    yield context.new_page()
    context.close()


def open_form(page: Page, fleet: PrefectServer, deployment: str = "speedrun/speedrun") -> None:
    found = fleet.call("GET", f"/deployments/name/{deployment}")
    page.goto(f"{fleet.url}/v2/deployments/deployment/{found['id']}/run")
    expect(page.get_by_role("heading", name="Parameters")).to_be_visible(timeout=LOAD_MS)


def open_artifact(page: Page, run: FlowRun, key: str) -> None:
    """The page of the artifact with this key that the run has left."""
    wanted = {"flow_run_id": {"any_": [run.id]}, "key": {"any_": [key]}}
    (found,) = run.server.call("POST", "/artifacts/filter", {"artifacts": wanted})
    page.goto(f"{run.server.url}/v2/artifacts/artifact/{found['id']}")
    expect(page.get_by_text("Raw", exact=True)).to_be_visible(timeout=LOAD_MS)


def choose(page: Page, now: str, wanted: str) -> list[str]:
    """Choose from the first list that shows `now`; returns everything that it offers."""
    page.get_by_text(now, exact=True).first.click()
    expect(page.get_by_role("option").first).to_be_visible()
    offered = [option.strip() for option in page.get_by_role("option").all_inner_texts()]
    page.get_by_role("option", name=wanted, exact=True).click()
    # The next list opens only after this one has gone.
    expect(page.get_by_role("option")).to_have_count(0)
    return offered


def test_the_form_explains_every_parameter(
    fleet: PrefectServer, page: Page, tmp_path: Path
) -> None:
    open_form(page, fleet)
    for name, field in RunParameters.model_fields.items():
        expect(page.get_by_text(f"{name} (Optional)", exact=True)).to_be_visible()
        expect(page.get_by_text(field.description or "", exact=True)).to_be_visible()
    page.screenshot(path=tmp_path / "form.png", full_page=True)


def test_what_is_chosen_in_the_form_is_what_the_run_is_asked_for(
    fleet: PrefectServer, page: Page
) -> None:
    open_form(page, fleet)
    assert choose(page, "demo", "tiny") == [*PRESETS]
    assert choose(page, "end", "tokens") == [*STATIONS, "end"]
    assert choose(page, "none", "tokenizer") == ["none", *STATIONS]
    with page.expect_response("**/create_flow_run", timeout=LOAD_MS) as created:
        page.get_by_role("button", name="Submit").click()
    run = FlowRun(fleet, created.value.json()["id"])
    # No worker shall find it.
    run.cancel()
    chosen = {"preset": "tiny", "stop_after": "tokens", "start_from": "tokenizer"}
    assert chosen.items() <= run.values["parameters"].items()


@pytest.fixture(scope="module")
def finished(
    fleet: PrefectServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[FlowRun, FlowRun]]:
    """The tiny line, and the same again; made by the first test that looks at it."""
    folder = tmp_path_factory.mktemp("worker")
    worker = Worker(fleet, "cpu", folder / "there", {"NANOCHAT_STORE": str(folder / "store")})
    try:
        worker.start()
        runs = [fleet.run_by_command("-p", "preset=tiny").completed(600) for _ in range(2)]
        yield runs[0], runs[1]
    finally:
        worker.remove()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_page_of_a_run_shows_its_stations_and_which_were_cached(
    finished: tuple[FlowRun, FlowRun], page: Page, tmp_path: Path
) -> None:
    for run, summary in zip(finished, (f"{len(RUN)} Completed", f"{len(RUN)} Cached"), strict=True):
        page.goto(f"{run.server.url}/v2/runs/flow-run/{run.id}")
        expect(page.get_by_text(f"{len(RUN)} Task runs").first).to_be_visible()
        page.get_by_role("tab", name="Artifacts").click()
        for key in ("report", "run-report", "lineage", "model", "pretrain-report"):
            expect(page.get_by_text(key, exact=True)).to_be_visible()
        page.get_by_role("tab", name="Task Runs").click()
        expect(page.get_by_text(f"({summary})")).to_be_visible()
        for station in RUN:
            expect(page.get_by_role("link", name=station, exact=True)).to_be_visible()
        page.screenshot(path=tmp_path / f"{summary}.png")
    page.get_by_role("tab", name="Logs").click()
    expect(page.get_by_text("cache hit shards/").first).to_be_visible()
    cached = [state.message for name, state in finished[1].task_runs().items() if name != "release"]
    assert all(message.startswith("cache hit ") for message in cached)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_report_of_a_run_shows_its_plots(
    finished: tuple[FlowRun, FlowRun], page: Page, tmp_path: Path
) -> None:
    for run in finished:
        open_artifact(page, run, "report")
        plots = page.locator("img[src^='data:image/png']")
        expect(plots).to_have_count(PLOTS)
        widths = plots.evaluate_all("images => images.map(image => image.naturalWidth)")
        assert all(width > 100 for width in widths)
        page.screenshot(path=tmp_path / "report.png")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_the_model_and_its_lineage_are_on_the_page(
    finished: tuple[FlowRun, FlowRun], page: Page, tmp_path: Path
) -> None:
    run = finished[1]
    open_artifact(page, run, "lineage")
    rows = [row.split("\t") for row in page.get_by_role("row").all_inner_texts()]
    assert [row[0] for row in rows[1:]] == [name for name in RUN if name != "release"]
    assert {row[1] for row in rows[1:]} == {"cached"}
    page.screenshot(path=tmp_path / "lineage.png")
    open_artifact(page, run, "model")
    expect(page.get_by_text("nanochat chat rl/").first).to_be_visible()
    link = page.get_by_role("link", name="rl/").get_attribute("href") or ""
    assert Path(link.removeprefix("file://"), "manifest-000001.json").exists()
    page.screenshot(path=tmp_path / "model.png")
