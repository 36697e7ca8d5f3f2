"""A model as the programs that talk to people want it: on the best device, ready to answer."""

import os
from pathlib import Path

import torch

from nanochat_core.distributed.ranks import pick_device
from nanochat_core.inference.engine import EngineSettings, InferenceEngine
from nanochat_core.inference.loading import load_pair, read_config

SMALL_WIDTH = 512
"""Below this width a second thread costs more in waiting than it brings."""
MAX_THREADS = 8
GPU_CACHE_SHARE = 0.5
"""Of the memory that a loaded model leaves; growing a cache needs the old one beside the new."""


def open_engine(
    model_folder: Path,
    tokenizer_folder: Path,
    device: str,
    settings: EngineSettings | None = None,
) -> InferenceEngine:
    """Load a model to answer with, and set the number of CPU threads of this process for it."""
    place = pick_device(device)
    _, shape = read_config(model_folder)
    is_small = shape.n_embd < SMALL_WIDTH
    torch.set_num_threads(1 if is_small else min(MAX_THREADS, os.cpu_count() or 1))
    # A single token is read-bound: on a CPU, casting float32 weights for each would cost more.
    dtype = torch.bfloat16 if place.type == "cuda" else torch.float32
    model, _, tokenizer = load_pair(model_folder, tokenizer_folder, place, dtype)
    settings = settings or EngineSettings()
    if place.type == "cuda":
        free_bytes, _ = torch.cuda.mem_get_info(place)
        gigabytes = GPU_CACHE_SHARE * free_bytes / 2**30
        settings = settings.model_copy(update={"cache_gigabytes": gigabytes})
    return InferenceEngine(model, tokenizer, settings)
