"""`nanochat export` of a model of the tiny line, and other people's tools on what it writes."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from line_tools import END, Command, Line, Uninterrupted

from flows.exporting.inputs import tokenizer_ref
from nanochat_core.benchmarks.base import prompt
from nanochat_core.benchmarks.identity import make_identity
from nanochat_core.conversation.identity import ModelFacts
from nanochat_core.conversation.types import Conversation, exchange
from nanochat_core.evals.chat_answers import Answer, answer_problems
from nanochat_core.inference.engine import InferenceEngine
from nanochat_core.inference.loading import load_pair
from nanochat_core.inference.settings import GREEDY
from nanochat_core.tokenizer.chat_format import render_prompt

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.xdist_group("tiny-line"),
    pytest.mark.timeout(600),
]

QUESTIONS = 30
NEW_TOKENS = 24
FACTS = ModelFacts(
    name="nanochat",
    depth=2,
    num_parameters=1,
    n_embd=1,
    n_head=1,
    vocab_size=1,
    sequence_len=1,
)
"""Questions are the same whatever is true."""
LOADING = """
import json, sys
from transformers import AutoModelForCausalLM, AutoTokenizer

folder, questions = sys.argv[1], json.loads(sys.argv[2])
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
for question in questions:
    inputs = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}],
        add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )
    found = model.generate(**inputs, max_new_tokens=int(sys.argv[3]))
    print(json.dumps(found[0, inputs["input_ids"].shape[1]:].tolist()))
assert not [name for name in sys.modules if name.partition(".")[0] in ("flows", "nanochat_core")]
"""
TASK = """
task: exact
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: []
  do_sample: false
  max_gen_toks: {new_tokens}
filter_list:
  - name: stripped
    filter:
      - function: regex
        regex_pattern: '(?s)\\A\\s*(.*?)\\s*\\Z'
      - function: take_first
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


@dataclass(frozen=True)
class Exported:
    """What `nanochat export` wrote, of which store, and what it said."""

    line: Line
    folder: Path
    output: str


@dataclass(frozen=True)
class ExactReplies:
    """A benchmark of ours that takes a reply only word for word."""

    pairs: Sequence[tuple[str, str]]
    name = "exact"
    baseline = 0.0

    def __len__(self) -> int:
        return len(self.pairs)

    def conversation(self, index: int) -> Conversation:
        return exchange(*self.pairs[index])

    def score(self, index: int, reply: str) -> float:
        return float(reply == self.pairs[index][1])


@pytest.fixture(scope="module")
def exported(uninterrupted: Uninterrupted, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """The model that the line has released."""
    root = tmp_path_factory.mktemp("export")
    line = uninterrupted.line.copy_until(END, root, records=True)
    command = export(line, "latest", "--output", str(root / "model"))
    assert command.wait(240) == 0, command.output
    return Exported(line, root / "model", command.output)


@pytest.fixture(scope="module")
def engine(exported: Exported) -> InferenceEngine:
    """Ours, on the same model in the same numbers."""
    store = exported.line.store
    model = store.resolve("latest")
    folders = store.materialize(model), store.materialize(tokenizer_ref(store, model))
    loaded, _, tokenizer = load_pair(*folders, "cpu", torch.float32)
    return InferenceEngine(loaded, tokenizer)


def export(line: Line, *arguments: str) -> Command:
    return Command(["export", *arguments, "--store", str(line.store_folder)], str(line.home))


def run_elsewhere(arguments: Sequence[str], folder: Path) -> str:
    """A Python process without the network, with no file of ours but the export."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **offline},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def questions() -> list[str]:
    """About the model: it answers them without the calculator, whose work harnesses would show."""
    asked = make_identity("test", QUESTIONS, FACTS)
    return [asked.conversation(i).messages[0].text for i in range(QUESTIONS)]


def answers(engine: InferenceEngine, benchmark: ExactReplies) -> list[Answer]:
    """What our harness makes of it."""
    found = answer_problems(
        engine,
        benchmark,
        range(len(benchmark)),
        batch_tokens=1_024,
        max_new_tokens=NEW_TOKENS,
        on_done=lambda _: None,
    )
    return sorted(found, key=lambda answer: answer.index)


def test_the_folder_holds_all_that_is_needed_and_a_card(exported: Exported) -> None:
    names = {str(path.relative_to(exported.folder)) for path in exported.folder.rglob("*.*")}
    assert names >= {
        "README.md",
        "chat_template.jinja",
        "config.json",
        "calculator_nanochat.py",
        "generation_config.json",
        "model.safetensors",
        "modeling_nanochat.py",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "AutoModelForCausalLM.from_pretrained(" in exported.output
    (ref,) = exported.line.store.list("export")
    manifest = exported.line.store.manifest(ref)
    assert (manifest.metrics["prompts"], manifest.metrics["strings"]) == (100, 10_000)
    page = (exported.folder / "README.md").read_text(encoding="utf-8")
    for station in ("shards", "tokenizer", "pretrain", "sft", "rl", "base_eval", "chat_eval_rl"):
        assert f"`{exported.line.store.list(station)[-1].short}`" in page


def test_a_second_export_is_cached_and_overwrites_nothing(
    exported: Exported, tmp_path: Path
) -> None:
    again = export(exported.line, "rl/" + exported.line.store.list("rl")[0].fingerprint[:8])
    assert again.wait(120) == 0, again.output
    assert "export         cached" in again.output
    same = export(exported.line, "--output", str(exported.folder))
    assert same.wait(60) == 2
    assert "is not empty" in same.output
    absent = export(exported.line, "d99", "--output", str(tmp_path / "model"))
    assert absent.wait(60) == 1
    assert "no model d99" in absent.output
    assert not (tmp_path / "model").exists()


def test_transformers_loads_it_offline_and_replies_as_our_engine(
    exported: Exported, engine: InferenceEngine, tmp_path: Path
) -> None:
    asked = questions()[:6]
    arguments = ["-c", LOADING, str(exported.folder), json.dumps(asked), str(NEW_TOKENS)]
    found = [json.loads(line) for line in run_elsewhere(arguments, tmp_path).splitlines()]
    for question, theirs in zip(asked, found, strict=True):
        ids = render_prompt(engine.tokenizer, prompt(exchange(question, "")))
        ours = list(engine.generate_ids(ids, GREEDY, max_new_tokens=NEW_TOKENS))
        assert theirs[: len(ours)] == ours
        assert len(ours) == NEW_TOKENS or theirs[len(ours)] in engine.stop_tokens


def test_lm_eval_agrees_with_our_harness_on_every_example(
    exported: Exported, engine: InferenceEngine, tmp_path: Path
) -> None:
    nobody_knows = ExactReplies([(question, "?") for question in questions()])
    replies = [answer.reply for answer in answers(engine, nobody_knows)]
    # Every other answer is the model's own: it is right there, and wrong elsewhere.
    targets = [reply if i % 2 else f"{reply}!" for i, reply in enumerate(replies)]
    pairs = list(zip(questions(), targets, strict=True))
    ours = [answer.score for answer in answers(engine, ExactReplies(pairs))]
    assert sum(ours) == QUESTIONS / 2
    rows = "".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in pairs)
    (tmp_path / "rows.jsonl").write_text(rows, encoding="utf-8")
    task = TASK.format(file=tmp_path / "rows.jsonl", new_tokens=NEW_TOKENS)
    (tmp_path / "exact.yaml").write_text(task, encoding="utf-8")
    script, output = Path(__file__).with_name("run_lm_eval.py"), tmp_path / "told.json"
    run_elsewhere(
        [str(script), str(exported.folder), str(tmp_path), "exact", str(output)], tmp_path
    )
    told = json.loads(output.read_bytes())
    assert [one["reply"].strip() for one in told] == replies
    assert [one["score"] for one in told] == ours
