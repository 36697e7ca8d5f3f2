"""The table of results: the base model, after SFT, after RL, and what RL changed."""

from collections.abc import Mapping, Sequence

from nanochat_core.conversation.markdown import escape
from nanochat_core.report.markdown import NOTHING, Lines, section, table
from nanochat_core.report.material import CHAT_EVALS, Material
from nanochat_core.report.scores import IDENTITY, IDENTITY_KINDS, Change, Score, change, pair

DECIMALS = {"val/bpb": 4}
BASE_NAMES = {
    "val/bpb": "validation, bits per byte (less is better)",
    "core_metric": "CORE",
    "demo_score": "mean of the tasks below, centered",
}
CHAT_NAMES = {"chatcore_metric": "ChatCORE", "demo_score": "mean of the benchmarks, centered"}
CHAT_NAMES |= {kind: f"{IDENTITY}: {kind}" for kind in IDENTITY_KINDS}
HEADS = {"chat_eval_sft": "after SFT", "chat_eval_rl": "after RL"}


def results(material: Material) -> Lines:
    """Scores of the base model, after SFT and after RL, in one table."""
    base = {**material.base_scores(), **material.base_tasks()}
    chat = {name: material.chat_scores(name) for name in CHAT_EVALS if name in material.manifests}
    changes = score_changes(material)
    titles = ["score", *(["base:"] if base else []), *(f"{HEADS[name]}:" for name in chat)]
    titles += ["through RL:"] if changes else []
    num_chat = len(titles) - 2
    rows = [
        [escape(BASE_NAMES.get(name, name)), _score_cell(name, base), *[NOTHING] * num_chat]
        for name in base
    ]
    # Of base and chat models, `demo_score` is the mean of other things: never in one row.
    for name in dict.fromkeys(name for scores in chat.values() for name in scores):
        cells = [NOTHING] if base else []
        cells += [_score_cell(name, scores) for scores in chat.values()]
        cells += [_change_cell(changes.get(name))] if changes else []
        rows.append([escape(CHAT_NAMES.get(name, name)), *cells])
    return section("Results", table(titles, rows), _score_notes(rows, changes))


def score_changes(material: Material) -> dict[str, Change]:
    """What RL changed of every score that both chat evaluations have."""
    if any(name not in material.manifests for name in CHAT_EVALS):
        return {}
    before, after = (material.chat_scores(name) for name in CHAT_EVALS)
    answers = [material.answers(name) for name in CHAT_EVALS]
    return {
        name: change(before[name], after[name], pair(name, *answers))
        for name in before
        if name in after
    }


def _score_cell(name: str, scores: Mapping[str, Score]) -> str:
    if name not in scores:
        return NOTHING
    score = scores[name]
    asked = f" of {score.asked:,}" if score.asked else ""
    return score.text(DECIMALS.get(name, 3)) + asked


def _change_cell(gain: Change | None) -> str:
    if gain is None:
        return NOTHING
    return gain.text() + (" (noise)" if gain.is_noise else "")


def _score_notes(rows: Sequence[Sequence[str]], changes: Mapping[str, Change]) -> Lines:
    cells = [cell for row in rows for cell in row[1:]]
    if not any("±" in cell for cell in cells):
        return []
    note = "± is one standard error."
    if changes:
        note += (
            " The change through RL is paired, question by question, where both models were asked "
            "the same; *noise* is a change of at most two standard errors."
        )
    if any("± 0.000" in cell for cell in cells):
        note += " An error of 0 says that all replies went the same way, not that it is certain."
    return [note]
