"""The material of a model card as a store knows it now: evaluations come after models."""

from nanochat_core.artifacts.ancestry import Ancestry
from nanochat_core.artifacts.newest import newest_manifests
from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.export.card_sources import EVALUATIONS, card_material
from nanochat_core.export.model_card import CardMaterial
from nanochat_core.export.recipe import PACKAGES

MODEL_INPUT, TOKENIZER_INPUT = "model", "tokenizer"
"""What the inputs of an export are called."""


def material_of_model(
    store: ArtifactStore, model: ArtifactRef, tokenizer: ArtifactRef
) -> CardMaterial:
    """Lineage of a model as far as it is there, in the order of making, and its scores."""
    manifest = store.manifest(model)
    lineage = Ancestry(Manifests(store.files)).closure([tokenizer, *manifest.input_refs.values()])
    evaluations = [
        one for station in EVALUATIONS.values() for one in newest_manifests(store, station)
    ]
    return card_material(manifest, store.materialize(model), lineage, evaluations)


def material_of_export(store: ArtifactStore, export: ArtifactRef) -> CardMaterial:
    """That of its model, and what the export says of its comparison."""
    made = store.manifest(export)
    inputs = made.input_refs
    material = material_of_model(store, inputs[MODEL_INPUT], inputs[TOKENIZER_INPUT])
    packages = {name: str(made.provenance[name]) for name in PACKAGES if name in made.provenance}
    return material.model_copy(update={"checks": made.metrics, "packages": packages})
