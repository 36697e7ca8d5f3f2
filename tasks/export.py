"""Station `export`: a model as a Hugging Face folder, compared with the original."""

from nanochat_core.artifacts.ancestry import Ancestry
from nanochat_core.artifacts.newest import newest_manifests
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import EXPORT_STATION, ArtifactRef, Manifest
from nanochat_core.config.job import StageOutput
from nanochat_core.export.card_sources import EVALUATIONS, card_material
from nanochat_core.export.model_card import CardMaterial
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

MODEL, TOKENIZER = "model", "tokenizer"
CODE_VERSION = 1


@stage(EXPORT_STATION, code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def export(work: StageWork) -> StageOutput:
    """Write the folder for transformers, load it back, and compare it before it is published."""
    material(work).save(work.work)
    return work.run_job("nanochat_core.jobs.export")


def material(work: StageWork) -> CardMaterial:
    """What the model card says: the lineage of the model, and what the store knows of its scores.

    Evaluations are no inputs: one that is made later changes no file of the result.
    """
    store = work.call.run.store
    model = store.manifest(work.input_refs[MODEL])
    tokenizer = work.input_refs[TOKENIZER]
    return card_material(
        model, work.inputs[MODEL], _lineage(store, model, tokenizer), _evaluations(store)
    )


def _lineage(store: ArtifactStore, model: Manifest, tokenizer: ArtifactRef) -> list[Manifest]:
    """All that a model was made from, as far as it is there, in the order of making."""
    ancestry = Ancestry(Manifests(store.files))
    return ancestry.closure([tokenizer, *model.input_refs.values()])


def _evaluations(store: ArtifactStore) -> list[Manifest]:
    return [one for station in EVALUATIONS.values() for one in newest_manifests(store, station)]
