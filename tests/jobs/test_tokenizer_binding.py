"""A model answers only with the tokenizer that it was trained with."""

from collections.abc import Callable
from pathlib import Path

import pytest
from job_tools import SFT, make_spec, make_text

from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import CheckpointError
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe
from nanochat_core.inference import CheckpointManager
from nanochat_core.jobs import base_eval, chat, chat_eval, sft
from nanochat_core.jobs.common import StopRequest
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer

JOBS = {
    "base_eval": (base_eval, BaseEvalRecipe()),
    "sft": (sft, SFT),
    "chat_eval_sft": (chat_eval, ChatEvalRecipe()),
}


def run_job(name: str) -> Callable[[dict[str, str], Path], None]:
    def run(inputs: dict[str, str], folder: Path) -> None:
        job, recipe = JOBS[name]
        job.main(make_spec(recipe, inputs, folder, station=name), Ranks.single(), StopRequest())

    return run


def run_chat(inputs: dict[str, str], folder: Path) -> None:
    chat.load_chat_model("model", Path(inputs["pretrain"]), Path(inputs["tokenizer"]), "cpu", "")


def run_manager(inputs: dict[str, str], folder: Path) -> None:
    CheckpointManager(inputs["pretrain"], tokenizer=inputs["tokenizer"], device="cpu").load()


USERS = {**{name: run_job(name) for name in JOBS}, "chat": run_chat, "manager": run_manager}


@pytest.mark.parametrize("user", USERS)
def test_another_tokenizer_of_the_same_size_is_refused_by_name(
    base: dict[str, str], tmp_path: Path, user: str
) -> None:
    other = Tokenizer.train(make_text(80, seed=1), TokenizerRecipe(vocab_size=320))
    other.save(tmp_path / "other")
    own = Tokenizer.load(Path(base["tokenizer"]))
    assert other.vocab_size == own.vocab_size
    inputs = {**base, "sft": base["pretrain"], "tokenizer": str(tmp_path / "other")}
    with pytest.raises(CheckpointError) as caught:
        USERS[user](inputs, tmp_path)
    for words in (own.identity[:8], other.identity[:8], base["pretrain"], inputs["tokenizer"]):
        assert words in str(caught.value)
