"""A line in miniature for evaluations: text, tokens, a base model and a chat model, in folders."""

import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from nanochat_core.config.execution import Execution
from nanochat_core.config.job import JobSpec
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.data.documents import Document, in_memory
from nanochat_core.data.recipes import TokensRecipe
from nanochat_core.data.shards import INDEX_FILE, deal_in_turn, write_shards
from nanochat_core.data.token_files import build_tokens
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe
from nanochat_core.inference.loading import save_model
from nanochat_core.logs import Progress
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer
from tests.evals.eval_tools import TEXT, make_model

FACTS = ModelFacts(
    name="Ada", depth=2, num_parameters=1000, n_embd=32, n_head=2, vocab_size=280, sequence_len=64
)


@cache
def documents() -> tuple[Document, ...]:
    """Sentences of shuffled words, long enough to be cut into questions."""
    rng = random.Random(0)
    words = sorted(set(TEXT.replace(".", "").replace(",", "").split()))

    def sentence() -> str:
        return " ".join(rng.choices(words, k=12)).capitalize() + "."

    return tuple(
        Document(" ".join(sentence() for _ in range(8)), held_out=i % 3 == 0) for i in range(90)
    )


def make_shards(documents: Sequence[Document], folder: Path) -> None:
    """One shard to train on, and the one for validation."""
    source = in_memory(list(documents))
    dealt = deal_in_turn(source, 1, Progress(None, len(documents), "documents"))
    index = write_shards(dealt, folder, 1)
    (folder / INDEX_FILE).write_text(index.model_dump_json())


def make_line(root: Path) -> dict[str, str]:
    """Folders of the inputs, by name."""
    inputs = {name: root / name for name in ("shards", "tokenizer", "tokens", "pretrain", "sft")}
    for folder in inputs.values():
        folder.mkdir(parents=True)
    make_shards(documents(), inputs["shards"])
    texts = [document.text for document in documents()]
    Tokenizer.train(texts, TokenizerRecipe(vocab_size=280)).save(inputs["tokenizer"])
    build_tokens(
        TokensRecipe(),
        inputs["shards"],
        inputs["tokenizer"],
        inputs["tokens"],
        workers=1,
        progress=Progress(None, 2, "shards"),
    )
    model = make_model()
    save_model(model, inputs["pretrain"], {})
    save_model(model, inputs["sft"], {"facts": FACTS.model_dump(mode="json")})
    return {name: str(folder) for name, folder in inputs.items()}


def make_spec(line: dict[str, str], folder: Path, station: str) -> JobSpec:
    recipe = {
        "base_eval": BaseEvalRecipe(
            validation_tokens=512,
            max_per_task=6,
            sample_tokens=4,
            sample_prompts=("The sky", "What is"),
            compute_dtype="float32",
        ),
        "chat_eval": ChatEvalRecipe(
            identity_questions=3, sums=2, max_new_tokens=4, compute_dtype="float32"
        ),
    }[station]
    for name in ("work", "output"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    return JobSpec(
        station=station,
        recipe=recipe.model_dump(mode="json"),
        execution=Execution(device="cpu", device_batch_size=4),
        inputs=line,
        work_folder=str(folder / "work"),
        output_folder=str(folder / "output"),
    )
