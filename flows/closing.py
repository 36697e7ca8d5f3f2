"""The last lines of a run: what the model says, and how to talk to it."""

import json
from collections.abc import Mapping
from typing import Any

from nanochat_core.artifacts.store import ArtifactStore
from tasks.listening import StageRecord

NUM_QUESTIONS = 3
ANSWERS_FILE = "answers.json"


def closing_lines(
    store: ArtifactStore, records: Mapping[str, StageRecord], chat_command: str
) -> list[str]:
    """Three questions with the model's own answers, and the command to chat with it."""
    release = records.get("release")
    if release is None or release.ref is None:
        return []
    lines = [""]
    evaluated = records.get("chat_eval_sft")
    if evaluated is not None and evaluated.ref is not None:
        path = store.materialize(evaluated.ref) / ANSWERS_FILE
        for answer in chosen(json.loads(path.read_bytes())):
            lines += [f"you: {answer['question']}", f"nanochat: {answer['answer']}", ""]
    if not chat_command:
        return [*lines, "The store was in memory: this model ends with the command."]
    return [*lines, f"Chat with it:  {chat_command}"]


def chosen(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first question of each kind, right or wrong, and then the next ones in order."""
    kinds = [answer.get("kind") for answer in answers]
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    others = [i for i in range(len(answers)) if i not in firsts]
    return [answers[i] for i in [*firsts, *others][:NUM_QUESTIONS]]
