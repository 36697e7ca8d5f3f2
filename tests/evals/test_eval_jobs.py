"""The two evaluation jobs from folder to folder, in this process, on a small real line."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from nanochat_core.benchmarks.open import open_benchmark
from nanochat_core.config.job import PROGRESS_FILE, JobSpec, StageOutput
from nanochat_core.data.documents import Document
from nanochat_core.distributed.ranks import Ranks
from nanochat_core.errors import ConfigError, DataError, JobStoppedError, WeakSandboxError
from nanochat_core.evals.recipes import ChatEvalRecipe
from nanochat_core.jobs import base_eval, chat_eval
from nanochat_core.jobs.common import StopRequest
from tests.evals.eval_line import FACTS, make_line, make_shards, make_spec


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of the inputs, by name."""
    return make_line(tmp_path_factory.mktemp("line"))


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
    chat_eval.main(make_spec(line, tmp_path, "chat_eval"), Ranks.single(), StopRequest())
    output = tmp_path / "output"
    answers = read_json(output / "answers.json")
    assert [answer["kind"] for answer in answers] == ["name", "depth", "parameters"] + ["sums"] * 2
    assert {"kind", "question", "answer", "right"} < set(answers[0])
    scores = read_json(output / "scores.json")
    assert scores["identity/asked"] == 3
    outputs = StageOutput.load(output)
    assert outputs.files == {"scores.json": "result", "answers.json": "result"}
    for name in ("identity", "identity/right", "identity/asked", "sums", "sums/stderr"):
        assert outputs.metrics[name] == scores[name]
    assert outputs.metrics["demo_score"] == scores["demo_score"]
    assert set(scores["benchmarks"]) == {"identity", "sums"}
    progress = read_json(tmp_path / "work" / PROGRESS_FILE)
    assert progress["done"] == progress["total"] == 5


def test_a_base_model_has_no_facts_to_be_asked_about(line: dict[str, str], tmp_path: Path) -> None:
    inputs = {**line, "sft": line["pretrain"]}
    with pytest.raises(DataError, match="station sft"):
        chat_eval.main(make_spec(inputs, tmp_path, "chat_eval"), Ranks.single(), StopRequest())


def changed(spec: JobSpec, **recipe: object) -> JobSpec:
    """The job with other fields of its recipe."""
    return spec.model_copy(update={"recipe": {**spec.recipe, **recipe}})


def write_benchmarks(folder: Path) -> str:
    folder.mkdir()
    arc = [
        {
            "question": f"What is {word}?",
            "choices": {"text": ["the sky", "a dog", "the sea"], "label": list("ABC")},
            "answerKey": "ABC"[i % 3],
        }
        for i, word in enumerate(["blue", "big", "hot", "old", "green"])
    ]
    humaneval = [
        {
            "task_id": "HumanEval/0",
            "prompt": "def one():\n",
            "canonical_solution": "    return 1\n",
            "test": "def check(candidate):\n    assert candidate() == 1\n",
            "entry_point": "one",
        }
    ]
    gsm8k = [{"question": f"{i} and 2?", "answer": f"#### {i + 2}"} for i in range(3)]
    files = {"arc-easy": arc, "humaneval": humaneval, "gsm8k": gsm8k}
    for name, rows in files.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}-test.jsonl").write_text(text)
    return str(folder)


def test_benchmarks_from_files_are_asked_too(line: dict[str, str], tmp_path: Path) -> None:
    inputs = {**line, "benchmarks": write_benchmarks(tmp_path / "benchmarks")}
    names = ["arc-easy", "gsm8k", "spelling", "sums"]
    spec = changed(
        make_spec(inputs, tmp_path, "chat_eval"), benchmarks=names, max_problems=3, sums=0
    )
    chat_eval.main(spec, Ranks.single(), StopRequest())
    scores = read_json(tmp_path / "output" / "scores.json")
    assert {name: part["asked"] for name, part in scores["benchmarks"].items()} == {
        "arc-easy": 3, "gsm8k": 3, "spelling": 3,
    }  # fmt: skip
    answers = read_json(tmp_path / "output" / "answers.json")
    assert all(answer["answer"] in "ABC" for answer in answers[:3])


def test_what_cannot_be_asked_is_refused_before_anything_is_loaded(
    line: dict[str, str], tmp_path: Path
) -> None:
    spec = make_spec(line, tmp_path, "chat_eval")
    nowhere = spec.model_copy(update={"inputs": {"sft": "nowhere", "tokenizer": "nowhere"}})
    with pytest.raises(ConfigError, match=r"mmlu-test\.jsonl or mmlu-test\.jsonl\.gz or "):
        chat_eval.main(
            changed(nowhere, benchmarks=["identity", "mmlu"]), Ranks.single(), StopRequest()
        )
    with pytest.raises(ConfigError, match="hold no model"):
        chat_eval.main(
            spec.model_copy(update={"inputs": {"tokenizer": "nowhere"}}),
            Ranks.single(),
            StopRequest(),
        )
    with pytest.raises(ConfigError, match="0 problems of sums"):
        chat_eval.main(changed(spec, benchmarks=["sums"], sums=0), Ranks.single(), StopRequest())


@pytest.mark.parametrize("field", ["identity_questions", "sums", "spelling"])
def test_no_more_is_asked_for_than_there_is(field: str) -> None:
    (most,) = (
        bound.le for bound in ChatEvalRecipe.model_fields[field].metadata if hasattr(bound, "le")
    )
    name = field.removesuffix("_questions")
    assert len(open_benchmark(name, "test", count=most, facts=FACTS)) == most
    with pytest.raises(ConfigError):
        open_benchmark(name, "test", count=most + 1, facts=FACTS)
    with pytest.raises(ValidationError, match=str(most)):
        ChatEvalRecipe.model_validate({field: most + 1})


@pytest.mark.parametrize("names", [[], ["sums", "sums"], ["arc"]])
def test_benchmarks_are_known_and_named_once(names: list[str]) -> None:
    with pytest.raises(ValidationError, match="benchmarks"):
        ChatEvalRecipe.model_validate({"benchmarks": names})


def test_the_newest_model_of_the_line_is_evaluated(line: dict[str, str], tmp_path: Path) -> None:
    spec = make_spec({**line, "rl": "the newest"}, tmp_path, "chat_eval")
    assert chat_eval.model_folder(spec) == Path("the newest")
    without = spec.model_copy(update={"inputs": {"pretrain": "base", "tokenizer": "any"}})
    assert chat_eval.model_folder(without) == Path("base")


def test_code_runs_under_mere_limits_only_when_that_is_allowed(
    line: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = {**line, "benchmarks": write_benchmarks(tmp_path / "benchmarks")}
    spec = make_spec(inputs, tmp_path, "chat_eval")
    recipe = ChatEvalRecipe(benchmarks=("humaneval",))
    monkeypatch.setattr("sys.platform", "another")  # no namespaces there
    with pytest.raises(WeakSandboxError):
        chat_eval.open_benchmarks(spec, recipe, ["humaneval"], {})
    allowed = spec.execution.model_copy(update={"allow_weak_sandbox": True})
    (benchmark,) = chat_eval.open_benchmarks(
        spec.model_copy(update={"execution": allowed}), recipe, ["humaneval"], {}
    )
    assert len(benchmark) == 1


@pytest.mark.distributed
def test_two_ranks_give_the_files_of_one(line: dict[str, str], tmp_path: Path) -> None:
    inputs = {**line, "benchmarks": write_benchmarks(tmp_path / "benchmarks")}
    names = ["identity", "arc-easy", "gsm8k", "humaneval", "sums"]
    files = {}
    for num_ranks in (1, 2):
        folder = tmp_path / str(num_ranks)
        spec = changed(make_spec(inputs, folder, "chat_eval"), benchmarks=names)
        # In float32 the model's choices are too far apart to depend on who shares a batch.
        execution = {"ranks": num_ranks, "allow_weak_sandbox": True}
        spec = spec.model_copy(update={"execution": spec.execution.model_copy(update=execution)})
        spec.save(folder / "job.json")
        torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        job = ["-m", "nanochat_core.jobs.chat_eval", str(folder / "job.json")]
        done = subprocess.run(
            [sys.executable, *torchrun, "--nproc-per-node", str(num_ranks), *job],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        names_on_disk = ("scores.json", "answers.json")
        files[num_ranks] = [(folder / "output" / name).read_bytes() for name in names_on_disk]
        outputs = StageOutput.load(folder / "output")
        assert set(outputs.files) == set(names_on_disk)
    assert files[1] == files[2]
    scores = json.loads(files[1][0])
    assert [part["asked"] for part in scores["benchmarks"].values()] == [3, 5, 3, 1, 2]


@pytest.mark.parametrize("job", [base_eval, chat_eval])
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
    make_shards(documents, shards)
    spec = make_spec({**line, "shards": str(shards)}, tmp_path, "base_eval")
    base_eval.main(spec, Ranks.single(), StopRequest())
    outputs = StageOutput.load(tmp_path / "output")
    assert set(outputs.metrics) == {"val/bpb"}
    assert set(outputs.files) == {"scores.json", "samples.json", "examples.csv", "metrics.jsonl"}
