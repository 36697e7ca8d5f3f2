"""The two evaluation jobs from folder to folder, in this process, on a small real line."""

import csv
import json
import random
from functools import cache
from pathlib import Path

import pytest
from eval_tools import TEXT, make_model

from nanochat_core.config.execution import Execution
from nanochat_core.config.job import PROGRESS_FILE, JobSpec, StageOutput
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.data.documents import Document
from nanochat_core.data.recipes import TokensRecipe
from nanochat_core.data.shards import INDEX_FILE, write_shards
from nanochat_core.data.token_files import build_tokens
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import DataError, JobStoppedError
from nanochat_core.evals.recipes import BaseEvalRecipe, ChatEvalRecipe
from nanochat_core.inference.loading import save_model
from nanochat_core.jobs import base_eval, chat_eval_sft
from nanochat_core.jobs.common import StopRequest
from nanochat_core.logs import Progress
from nanochat_core.tokenizer.recipe import TokenizerRecipe
from nanochat_core.tokenizer.tokenizer import Tokenizer

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


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the inputs, by name."""
    root = tmp_path_factory.mktemp("line")
    inputs = {name: root / name for name in ("shards", "tokenizer", "tokens", "pretrain", "sft")}
    for folder in inputs.values():
        folder.mkdir()
    index = write_shards(documents(), inputs["shards"], 1)
    (inputs["shards"] / INDEX_FILE).write_text(index.model_dump_json())
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
        "chat_eval_sft": ChatEvalRecipe(
            identity_questions=3, sums=2, max_new_tokens=4, compute_dtype="float32"
        ),
    }[station]
    for name in ("work", "output"):
        (folder / name).mkdir(parents=True)
    return JobSpec(
        station=station,
        recipe=recipe.model_dump(mode="json"),
        execution=Execution(device="cpu", device_batch_size=4),
        inputs=line,
        work_folder=str(folder / "work"),
        output_folder=str(folder / "output"),
    )


def read_json(path: Path) -> object:
    return json.loads(path.read_bytes())


def test_a_base_model_is_evaluated(line: dict[str, str], tmp_path: Path) -> None:
    spec = make_spec(line, tmp_path, "base_eval")
    base_eval.main(spec, Ranks.single(), StopRequest())
    output = tmp_path / "output"
    outputs = StageOutput.load(output)
    on_disk = {path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file()}
    assert on_disk == {*outputs.files, "outputs.json"}
    results = {name for name, role in outputs.files.items() if role == "result"}
    assert results == {"scores.json", "samples.json"}
    scores = read_json(output / "scores.json")
    assert outputs.metrics["val/bpb"] == scores["val/bpb"] > 0
    assert outputs.metrics["demo_score"] == scores["demo_score"]
    assert read_json(output / "metrics.jsonl") == {"step": None, **outputs.metrics}
    samples = read_json(output / "samples.json")
    assert [sample["temperature"] for sample in samples] == [0.0, 0.0, 0.7, 0.7]
    with (output / "examples.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == sum(task["examples"] for task in scores["tasks"].values())
    progress = read_json(tmp_path / "work" / PROGRESS_FILE)
    assert progress["done"] == progress["total"]


def test_the_same_evaluation_gives_the_same_result_files(
    line: dict[str, str], tmp_path: Path
) -> None:
    texts = []
    for name in ("one", "two"):
        spec = make_spec(line, tmp_path / name, "base_eval")
        base_eval.main(spec, Ranks.single(), StopRequest())
        files = ("scores.json", "samples.json", "examples.csv")
        texts.append([(tmp_path / name / "output" / file).read_bytes() for file in files])
    assert texts[0] == texts[1]


def test_a_chat_model_is_evaluated(line: dict[str, str], tmp_path: Path) -> None:
    chat_eval_sft.main(make_spec(line, tmp_path, "chat_eval_sft"), Ranks.single(), StopRequest())
    output = tmp_path / "output"
    answers = read_json(output / "answers.json")
    assert [answer["kind"] for answer in answers] == ["name", "depth", "parameters"] + ["sums"] * 2
    assert set(answers[0]) == {"kind", "question", "answer", "accept", "right"}
    scores = read_json(output / "scores.json")
    assert scores["identity/asked"] == 3
    assert StageOutput.load(output).metrics["identity"] == scores["identity"]


def test_a_base_model_has_no_facts_to_be_asked_about(line: dict[str, str], tmp_path: Path) -> None:
    inputs = {**line, "sft": line["pretrain"]}
    with pytest.raises(DataError, match="station sft"):
        chat_eval_sft.main(
            make_spec(inputs, tmp_path, "chat_eval_sft"), Ranks.single(), StopRequest()
        )


@pytest.mark.parametrize("job", [base_eval, chat_eval_sft])
def test_a_stop_request_ends_an_evaluation(
    line: dict[str, str], tmp_path: Path, job: object
) -> None:
    stop = StopRequest()
    stop.set("a test")
    with pytest.raises(JobStoppedError):
        job.main(make_spec(line, tmp_path, job.__name__.split(".")[-1]), Ranks.single(), stop)
    assert not (tmp_path / "output" / "outputs.json").exists()


def test_text_without_sentences_still_has_bits_per_byte(
    line: dict[str, str], tmp_path: Path
) -> None:
    shards = tmp_path / "shards"
    shards.mkdir()
    documents = [Document("x = 1\ny = 2", held_out=i == 0) for i in range(4)]
    (shards / INDEX_FILE).write_text(write_shards(documents, shards, 1).model_dump_json())
    spec = make_spec({**line, "shards": str(shards)}, tmp_path, "base_eval")
    base_eval.main(spec, Ranks.single(), StopRequest())
    outputs = StageOutput.load(tmp_path / "output")
    assert set(outputs.metrics) == {"val/bpb"}
    assert set(outputs.files) == {"scores.json", "samples.json", "examples.csv", "metrics.jsonl"}
