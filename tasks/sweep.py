"""Station `sweep`: one table, one page and the plots of many runs."""

from nanochat_core.artifacts.types import SWEEP_STATION, Manifest
from nanochat_core.config.job import StageOutput
from nanochat_core.report.inlining import with_images
from nanochat_core.report.sweeps.page import PAGE_FILE, write_sweep
from nanochat_core.report.sweeps.recipe import SweepRecipe
from tasks.listening import StageRecord
from tasks.stage import StageCall, StageWork, stage

CODE_VERSION = 1


def sweep_page(call: StageCall, _record: StageRecord, manifest: Manifest) -> str:
    """The page of the sweep with its plots inside."""
    folder = call.run.store.materialize(manifest.ref)
    page = (folder / PAGE_FILE).read_text(encoding="utf-8")
    return with_images(page, folder, [file.path for file in manifest.files])


@stage(SWEEP_STATION, code_version=CODE_VERSION, page=sweep_page)
def sweep(work: StageWork) -> StageOutput:
    """Write table, page and plots from the artifacts of all points."""
    store = work.call.run.store
    manifests = {name: store.manifest(ref) for name, ref in work.input_refs.items()}
    recipe = SweepRecipe.model_validate(work.recipe)
    return write_sweep(manifests, work.inputs, recipe, work.output)
