"""Station `report`: one page about the run, its plots, and the scores in a file."""

from collections.abc import Mapping

from nanochat_core.artifacts.types import Manifest
from nanochat_core.config.job import StageOutput
from nanochat_core.report.inlining import with_images
from nanochat_core.report.material import Material, StageRow
from nanochat_core.report.numbers import pick_key_numbers
from nanochat_core.report.recipe import ReportRecipe
from nanochat_core.report.writing import REPORT_FILE, stage_lines, with_stages, write_report
from tasks.listening import StageRecord, describe_metrics
from tasks.stage import StageCall, StageWork, stage

CODE_VERSION = 1
STATION = "report"


def report_page(call: StageCall, record: StageRecord, manifest: Manifest) -> str:
    """The report with its plots inside, and with how the stages of *this* run went."""
    store = call.run.store
    folder = store.materialize(manifest.ref)
    manifests = {name: store.manifest(ref) for name, ref in manifest.input_refs.items()}
    records = {**call.run.records, STATION: record}
    manifests[STATION] = manifest
    material = Material(manifests, {}, stage_rows(records), call.run.provenance)
    page = (folder / REPORT_FILE).read_text(encoding="utf-8")
    page = with_stages(page, stage_lines(material))
    return with_images(page, folder, [file.path for file in manifest.files])


@stage(STATION, code_version=CODE_VERSION, page=report_page)
def report(work: StageWork) -> StageOutput:
    """Write report.md, report.json and plots from whatever was made before."""
    run = work.call.run
    manifests = {name: run.store.manifest(ref) for name, ref in work.input_refs.items()}
    material = Material(manifests, work.inputs, stage_rows(run.records), run.provenance)
    return write_report(material, ReportRecipe.model_validate(work.recipe), work.output)


def stage_rows(records: Mapping[str, StageRecord]) -> list[StageRow]:
    """The rows of the table of stages."""
    return [
        StageRow(
            station=record.station,
            state=record.state,
            seconds=record.seconds,
            numbers=describe_metrics(pick_key_numbers(record.station, record.metrics)),
            artifact=record.ref.short if record.ref else "",
        )
        for record in records.values()
    ]
