"""Station `export`: a model as a Hugging Face folder, compared with the original."""

from nanochat_core.artifacts.types import EXPORT_STATION
from nanochat_core.config.job import StageOutput
from nanochat_core.export.current_card import MODEL_INPUT, TOKENIZER_INPUT, material_of_model
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 1


@stage(EXPORT_STATION, code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def export(work: StageWork) -> StageOutput:
    """Write the folder for transformers, load it back, and compare it before it is published.

    Evaluations are no inputs: the card, which tells of them, is written again with every copy.
    """
    refs = work.input_refs
    material_of_model(work.call.run.store, refs[MODEL_INPUT], refs[TOKENIZER_INPUT]).save(work.work)
    return work.run_job("nanochat_core.jobs.export")
