"""A run with own conversations, from their file to a chat model that was taught with them."""

import json
from pathlib import Path
from typing import Any

import pytest

from flows.parameters import RunParameters
from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import Manifest
from nanochat_core.errors import DataError
from tasks.listening import Listener, StageRecord, listening

pytestmark = [pytest.mark.e2e, pytest.mark.prefect, pytest.mark.usefixtures("prefect_server")]

WORDS = ("river", "stone", "cloud", "lantern", "winter", "paper", "engine", "garden", "silver")
PARAGRAPHS = [
    " ".join(WORDS[(i * k + k) % len(WORDS)] + str(i * k) for k in range(1, 40)).capitalize()
    for i in range(1, 201)
]
SMALL = {"tokenizer.vocab_size": 320, "pretrain.num_iterations": 4, "sft.num_iterations": 3}


class States(Listener):
    def __init__(self) -> None:
        self.states: dict[str, str] = {}

    def ended(self, record: StageRecord) -> None:
        self.states[record.station] = record.state


def pair(number: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"Is {number} one?"},
        {"role": "assistant", "content": "No."},
    ]


def run(folder: Path, conversations: list[Any], **values: Any) -> dict[str, str]:
    from flows.running import run_line

    (folder / "text.txt").write_text(".\n\n".join(PARAGRAPHS) + ".\n")
    lines = [json.dumps({"messages": messages}) + "\n" for messages in conversations]
    (folder / "me.jsonl").write_text("".join(lines))
    states = States()
    parameters = RunParameters(
        preset="tiny",
        store=str(folder / "store"),
        source=(str(folder / "text.txt"),),
        conversations=(f"{folder}/me.jsonl@3",),
        overrides=SMALL,
        stop_after="sft",
        **values,
    )
    with listening(states):
        run_line(parameters)
    return states.states


def newest(folder: Path, station: str) -> Manifest:
    store = ArtifactStore(str(folder / "store"))
    return store.manifest(store.list(station)[-1])


def test_own_conversations_are_published_taught_and_counted(tmp_path: Path) -> None:
    long = [{"role": "user", "content": "long " * 100}, {"role": "assistant", "content": "No."}]
    conversations = [*map(pair, range(30)), long, pair(99)[:1]]
    first = run(tmp_path, conversations)
    assert first["benchmarks"] == first["sft"] == "made"
    assert newest(tmp_path, "benchmarks").metrics["rows"] == 32
    metrics = newest(tmp_path, "sft").metrics
    assert metrics["conversations/me.jsonl"] == 96
    assert int(metrics["conversations_too_long"]) >= 3
    assert metrics["conversations_without_targets"] == 3

    # Other conversations: what does not read them stays.
    again = run(tmp_path, [*conversations, pair(100)])
    assert {name for name, state in again.items() if state == "made"} == {"benchmarks", "sft"}
    with pytest.raises(DataError, match=r"me\.jsonl:33: a conversation without messages"):
        run(tmp_path, [*conversations, []])
