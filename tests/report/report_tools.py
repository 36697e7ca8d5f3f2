"""A small line of artifacts, written by hand and published by a real store."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef, Request
from nanochat_core.config.job import Role, StageOutput
from nanochat_core.report.material import Material, StageRow

RESULTS = ("scores.json", "answers.json", "samples.json", "config.json")
COMPUTED = {"device_type": "cpu", "device": "", "ranks": 1, "compute_dtype": "float32"}
RUN = {
    "run": "20260101-000000-abc123",
    "preset": "tiny",
    "hardware": {"platform": "Linux", "cpus": 2, "python": "3.11.7"},
    "packages": {"torch": "2.13.0"},
}
NASTY = '| x | `y` <script>alert("1")</script>\n# head ![a](b) [c](http://d) *e* _f_ $g$ &amp; \\'
INPUTS = {
    "shards": (),
    "tokenizer": ("shards",),
    "tokens": ("shards", "tokenizer"),
    "pretrain": ("tokens", "tokenizer"),
    "base_eval": ("pretrain", "tokenizer"),
    "sft": ("pretrain", "tokenizer"),
    "chat_eval_sft": ("sft", "tokenizer"),
    "rl": ("sft", "tokenizer"),
    "chat_eval_rl": ("rl", "tokenizer"),
}


def lines(**series: Mapping[int, float]) -> str:
    """metrics.jsonl of series given as {step: value}; `_` in a name stands for a slash."""
    rows = [
        {"step": step, name.replace("_", "/", 1): value}
        for name, values in series.items()
        for step, value in values.items()
    ]
    return "".join(json.dumps(row) + "\n" for row in rows)


def answers(right_sums: str) -> list[dict[str, Any]]:
    """Ten sums, of which those marked `y` were right, and a question about the model itself."""
    sums = [
        {
            "benchmark": "sums",
            "kind": "sums",
            "question": f"{i} + {i} = ?",
            "answer": NASTY if i == 0 else str(i),
            "reference": str(2 * i),
            "right": mark == "y",
        }
        for i, mark in enumerate(right_sums)
    ]
    name = {"benchmark": "identity", "kind": "name", "question": "Your name?", "right": True}
    return [*sums, {**name, "answer": "My name is nanochat.", "reference": "nanochat"}]


def chat_scores(right_sums: str) -> dict[str, Any]:
    """scores.json to go with these answers."""
    right, asked = right_sums.count("y"), len(right_sums)
    return {
        "sums": right / asked,
        "sums/right": right,
        "sums/asked": asked,
        "identity": 1.0,
        "identity/right": 1,
        "identity/asked": 1,
        "demo_score": 0.8,
        "demo_score/stderr": 0.1,
        "benchmarks": {"sums": {"asked": asked}},
    }


BEFORE, AFTER = "yynnnnnnnn", "yyyyyyyynn"
CONTENTS: dict[str, dict[str, Any]] = {
    "shards": {},
    "tokenizer": {},
    "tokens": {},
    "pretrain": {
        "config.json": {
            "model": {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 512},
            "plan": {"tokens_per_step": 512},
        },
        "metrics.jsonl": lines(train_loss={1: 6.0, 2: 5.0, 30: 4.0}, val_bpb={15: 2.5, 30: 2.25}),
    },
    "base_eval": {
        "scores.json": {
            "val/bpb": 2.2,
            "val/tokens": 100,
            "demo_score": 0.25,
            "demo_score/stderr": 0.05,
            "tasks": {"heldout_word": {"accuracy": 0.5, "accuracy_stderr": 0.1, "examples": 25}},
        },
        "samples.json": [
            {"prompt": "The model", "completion": NASTY, "temperature": 0.0},
            {"prompt": "Note that", "completion": "", "temperature": 0.7, "seed": 1},
        ],
    },
    "sft": {"metrics.jsonl": lines(train_loss={5: 3.0, 10: 2.0}, val_loss={0: 3.5, 10: 2.5})},
    "chat_eval_sft": {"scores.json": chat_scores(BEFORE), "answers.json": answers(BEFORE)},
    "rl": {
        "metrics.jsonl": lines(
            rl_reward={step: step / 100 for step in range(1, 81)},
            **{f"pass@{k}": {0: 0.1 * k, 80: 0.12 * k} for k in (1, 2, 4, 8)},
        ),
        "rollouts.parquet": [
            {"step": i, "question": f"{i} + 1 = ?", "reply": NASTY, "reward": i % 2.0, "sample": 0}
            for i in range(11)
        ],
    },
    "chat_eval_rl": {"scores.json": chat_scores(AFTER), "answers.json": answers(AFTER)},
}
METRICS: dict[str, dict[str, Any]] = {
    "tokens": {"train_tokens": 9000, "characters_per_token": 3.5},
    "pretrain": {"steps": 30, "tokens": 15_360, "parameters": 70_000, "train/loss": 4.0},
    "sft": {"steps": 10, "train/loss": 2.0},
    "rl": {"steps": 80},
}


def write(path: Path, content: Any) -> None:
    """Text as it is, rows as parquet in groups of four, anything else as JSON."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(content), path, row_group_size=4)
    else:
        text = content if isinstance(content, str) else json.dumps(content)
        path.write_text(text, encoding="utf-8")


def publish_line(
    store: ArtifactStore, folder: Path, *, seconds: float = 2.0, stations: tuple[str, ...] = ()
) -> dict[str, ArtifactRef]:
    """Publish these stations (all by default), each made in `seconds`."""
    refs: dict[str, ArtifactRef] = {}
    for station in stations or tuple(CONTENTS):
        work = folder / f"{station}-work"
        work.mkdir(parents=True)
        files = {"file.txt": station, **CONTENTS[station]}
        roles: dict[str, Role] = {}
        for name, content in files.items():
            write(work / name, content)
            roles[name] = "result" if name in (*RESULTS, "file.txt") else "record"
        inputs = {name: refs[name] for name in INPUTS[station] if name in refs}
        is_training = station in ("pretrain", "sft", "rl")
        times = {"total_training_time": seconds} if is_training else {}
        metrics = {**METRICS.get(station, {}), **times}
        if station.startswith("chat"):
            numbers = CONTENTS[station]["scores.json"].items()
            metrics = {name: value for name, value in numbers if not isinstance(value, dict)}
        refs[station] = store.publish(
            Request(
                station=station,
                code_version=1,
                recipe={"seed": 1},
                inputs={name: ref.digest for name, ref in inputs.items()},
            ),
            work,
            StageOutput(files=roles, metrics=metrics),
            input_refs=inputs,
            provenance={"seconds": seconds, "resumed": False, **RUN, **COMPUTED},
        )
    return refs


def make_material(
    folder: Path, *, seconds: float = 2.0, stations: tuple[str, ...] = (), state: str = "made"
) -> Material:
    """The material of a line in a store of its own below `folder`."""
    store = ArtifactStore(str(folder / "store"))
    refs = publish_line(store, folder / "work", seconds=seconds, stations=stations)
    return Material(
        {name: store.manifest(ref) for name, ref in refs.items()},
        {name: store.materialize(ref) for name, ref in refs.items()},
        [StageRow(name, state, seconds, "steps 10", ref.short) for name, ref in refs.items()],
        RUN,
    )
