"""A real line in miniature for the job tests: generated text to token files, and jobs on them."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

from nanochat_core.config.base import Recipe
from nanochat_core.config.execution import Execution
from nanochat_core.config.job import JobSpec
from nanochat_core.conversation.recipes import Mixture, MixturePart
from nanochat_core.data.documents import Document, in_memory
from nanochat_core.data.recipes import TokensRecipe
from nanochat_core.data.shards import INDEX_FILE, deal_in_turn, write_shards
from nanochat_core.data.token_files import build_tokens
from nanochat_core.logs import Progress
from nanochat_core.optim.recipe import MuonGroup, OptimizerRecipe, ScheduleRecipe
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer
from nanochat_core.training.recipes import DataOrderRecipe, PretrainRecipe, SftRecipe

NUM_STEPS = 10
MODEL_FILES = ("model.safetensors", "config.json")
BASE_FILES = (*MODEL_FILES, "optimizer.safetensors", "optimizer.json")
SECONDS_ALLOWED = 120

PRETRAIN = PretrainRecipe(
    depth=2,
    aspect_ratio=16,
    head_dim=16,
    sequence_len=64,
    num_iterations=NUM_STEPS,
    tokens_per_step=8 * 64,
    scale_weight_decay=False,
    compute_dtype="bfloat16",
    optimizer=OptimizerRecipe(matrices=MuonGroup(weight_decay=0.1), scale_lr_with_batch=False),
    schedule=ScheduleRecipe(warmup_steps=2),
    data=DataOrderRecipe(block_shards=1, max_epochs=8.0),
)
SFT = SftRecipe(
    mixture=Mixture(
        parts=(
            MixturePart(kind="identity", conversations=20),
            MixturePart(kind="sums", conversations=20),
        )
    ),
    num_iterations=4,
    compute_dtype="bfloat16",
)


def make_text(count: int, seed: int = 0) -> list[str]:
    """Documents of made-up words, from a few words to several rows long."""
    rng = random.Random(seed)
    words = ["".join(rng.choices(("ka", "lo", "mi", "ne", "tu"), k=3)) for _ in range(40)]
    return [" ".join(rng.choices(words, k=rng.randint(3, 150))) for _ in range(count)]


def make_line(root: Path) -> dict[str, str]:
    """Folders of shards, tokenizer and tokens, by name."""
    folders = {name: root / name for name in ("shards", "tokenizer", "tokens")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    documents = [Document(text, held_out=i % 10 == 0) for i, text in enumerate(make_text(400))]
    in_turn = deal_in_turn(in_memory(documents), 2, Progress(None, 0, ""))
    index = write_shards(in_turn, folders["shards"], 2)
    (folders["shards"] / INDEX_FILE).write_text(index.model_dump_json())
    (folders["shards"] / "qa.jsonl").write_text("")
    texts = [document.text for document in documents]
    Tokenizer.train(texts, TokenizerRecipe(vocab_size=320)).save(folders["tokenizer"])
    build_tokens(
        TokensRecipe(),
        folders["shards"],
        folders["tokenizer"],
        folders["tokens"],
        workers=1,
        progress=Progress(None, 3, "shards"),
    )
    return {name: str(folder) for name, folder in folders.items()}


def make_spec(
    recipe: Recipe, inputs: dict[str, str], folder: Path, *, station: str, **execution: Any
) -> JobSpec:
    """A job in `folder`: eager, on one thread of the CPU, two rows a micro-batch."""
    for name in ("work", "output"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    settings = {"device_batch_size": 2, "log_every": 1, "checkpoint_every": 5, "eval_every": -1}
    return JobSpec(
        station=station,
        recipe=recipe.model_dump(mode="json"),
        execution=Execution(device="cpu", compile=False, **{**settings, **execution}),
        inputs=inputs,
        work_folder=str(folder / "work"),
        output_folder=str(folder / "output"),
    )


def run_ranks(spec: JobSpec) -> subprocess.CompletedProcess[str]:
    """The job as torchrun starts it; never raises for its exit code."""
    path = Path(spec.work_folder) / "job.json"
    spec.save(path)
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
    ranks = ["--nproc-per-node", str(spec.execution.ranks)]
    job = ["-m", f"nanochat_core.jobs.{spec.station}", str(path)]
    return subprocess.run(
        [sys.executable, *torchrun, *ranks, *job],
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"},
        capture_output=True,
        text=True,
        timeout=SECONDS_ALLOWED,
        check=False,
    )


def results(spec: JobSpec, names: tuple[str, ...] = BASE_FILES) -> dict[str, bytes]:
    """Bytes of the files that make the artifact's digest."""
    return {name: (Path(spec.output_folder) / name).read_bytes() for name in names}
