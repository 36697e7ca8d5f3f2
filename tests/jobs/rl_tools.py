"""A chat model in miniature that is right now and then, as reinforcement learning needs it."""

from pathlib import Path
from typing import Any

import torch
from job_tools import make_spec

from nanochat_core.config.job import JobSpec
from nanochat_core.inference.loading import save_model
from nanochat_core.model.gpt import GPT
from nanochat_core.training.dial import plan_training
from nanochat_core.training.recipes import PretrainRecipe, RlRecipe
from tests.inference.scripted import byte_tokenizer

BASE = PretrainRecipe(
    depth=2, n_embd=32, head_dim=16, sequence_len=64, num_iterations=1, tokens_per_step=64
)
RL = RlRecipe(
    task="sums",
    problems=40,
    questions_per_step=4,
    samples_per_question=8,
    normalise_group=4,
    max_new_tokens=12,
    num_iterations=6,
    lr_scale=1.0,
    pass_at_k=4,
    pass_at_k_questions=6,
    compute_dtype="float32",
)
SAID = "0123456789 "
"""What the model says, in any order, everything equally likely: numbers of some digits."""


def make_chat_model(root: Path) -> dict[str, str]:
    """Folders of a tokenizer and of a model that answers with random numbers."""
    tokenizer = byte_tokenizer()
    plan = plan_training(BASE, tokenizer.vocab_size)
    model = GPT(plan.model)
    model.init_weights(0)
    with torch.no_grad():
        # Tokens are much alike to it, and the direction that they share says what follows them.
        model.wte.weight[:, 0] = 4.0
        model.lm_head.weight[:, 0] = -2.0
        model.lm_head.weight[tokenizer.encode(SAID), 0] = 2.0
    config = {
        "training": BASE.model_dump(mode="json"),
        "plan": plan.model_dump(mode="json"),
        "tokenizer": tokenizer.identity,
    }
    tokenizer.save(root / "tokenizer")
    save_model(model, root / "sft", config)
    return {name: str(root / name) for name in ("tokenizer", "sft")}


def rl_spec(
    inputs: dict[str, str], folder: Path, recipe: RlRecipe = RL, **execution: Any
) -> JobSpec:
    """A job with a checkpoint every other step and pass@k every three."""
    settings = {"device_batch_size": 4, "checkpoint_every": 2, "eval_every": 3, **execution}
    return make_spec(recipe, inputs, folder, station="rl", **settings)
