"""The last lines of a run: what the model says, what RL changed, and how to talk to it."""

import json
from collections.abc import Mapping
from typing import Any

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.report.material import ANSWERS_FILE
from nanochat_core.report.scores import OVERALL, Score, read_scores
from nanochat_core.report.writing import REPORT_FILE
from tasks.listening import StageRecord

NUM_QUESTIONS = 3
BEFORE, AFTER = "chat_eval_sft", "chat_eval_rl"

Records = Mapping[str, StageRecord]


def closing_lines(store: ArtifactStore, records: Records, chat_command: str) -> list[str]:
    """Three questions with the model's own answers, what RL changed, the report, how to chat.

    A run that ends before it releases a model has only its report to show, if it has one.
    """
    report = [f"Report:  {report_place(store, ref)}"] if (ref := _ref(records, "report")) else []
    if _ref(records, "release") is None:
        return report
    lines = [""]
    for answer in chosen(_answers(store, records)):
        lines += [f"you: {answer['question']}", f"nanochat: {answer['answer']}", ""]
    if changes := change_lines(records):
        lines += [*changes, ""]
    lines += report
    if not chat_command:
        return [*lines, "The store was in memory: this model ends with the command."]
    return [*lines, f"Chat with it:  {chat_command}"]


def report_place(store: ArtifactStore, ref: ArtifactRef) -> str:
    """The path of report.md in a local store, else the name by which the artifact is found."""
    if store.files.local_path("") is None:
        return f"{ref.short} in {store.url}"
    return str(store.materialize(ref) / REPORT_FILE)


def change_lines(records: Records) -> list[str]:
    """A line for each benchmark that was asked before RL and after."""
    if _ref(records, BEFORE) is None or _ref(records, AFTER) is None:
        return []
    before, after = (read_scores(records[name].metrics) for name in (BEFORE, AFTER))
    shared = [name for name in before if name in after and name not in OVERALL]
    width = max(map(len, shared), default=0)
    return [
        f"{name:<{width}}  {_short(before[name])} -> {_short(after[name])} through RL"
        for name in shared
    ]


def _short(score: Score) -> str:
    # Two digits, unless they would hide the error.
    is_exact = score.stderr is not None and 0 < score.stderr < 0.005
    return score.text(3 if is_exact else 2)


def _ref(records: Records, station: str) -> ArtifactRef | None:
    record = records.get(station)
    return None if record is None else record.ref


def _answers(store: ArtifactStore, records: Records) -> list[dict[str, Any]]:
    """What the last evaluation of a chat model asked; none when there was no such evaluation."""
    ref = _ref(records, AFTER) or _ref(records, BEFORE)
    if ref is None:
        return []
    answers: list[dict[str, Any]] = json.loads((store.materialize(ref) / ANSWERS_FILE).read_bytes())
    return answers


def chosen(answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first question of each kind, right or wrong, and then the next ones in order."""
    kinds = [answer.get("kind") for answer in answers]
    firsts = [kinds.index(kind) for kind in dict.fromkeys(kinds)]
    others = [i for i in range(len(answers)) if i not in firsts]
    return [answers[i] for i in [*firsts, *others][:NUM_QUESTIONS]]
