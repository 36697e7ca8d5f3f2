"""The scores of a base model as a table for people, and as CSV (torch-free)."""

from collections.abc import Iterator, Mapping
from typing import Any

SCORES_FILE = "scores.json"
CORE_FILE = "core.csv"
_COLUMNS = ("accuracy", "accuracy_stderr", "centered", "centered_stderr")


def score_lines(scores: Mapping[str, Any]) -> list[str]:
    """scores.json of the station base_eval as lines; others have no lines here."""
    lines = []
    if tasks := scores.get("tasks"):
        rows = list(core_rows(scores))
        widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
        for label, *numbers in rows:
            cells = [n.rjust(width) for n, width in zip(numbers, widths[1:], strict=True)]
            lines.append("  ".join([label.ljust(widths[0]), *cells]))
        if cropped := sum(int(task["cropped_prompts"]) for task in tasks.values()):
            lines.append(f"{cropped} prompts were too long, and lost their beginning")
    if "val/bpb" in scores:
        lines.append(
            f"{scores['val/bpb']:.4f} bits per byte ({scores['val/bytes']:,} bytes, "
            f"{scores['val/tokens']:,} tokens)"
        )
    return lines


def core_rows(scores: Mapping[str, Any]) -> Iterator[list[str]]:
    """Header, a line a task, and the mean of all, each with its standard error."""
    yield ["task", "examples", *_COLUMNS]
    for label, task in scores["tasks"].items():
        yield [label, str(task["examples"]), *(f"{task[column]:.4f}" for column in _COLUMNS)]
    for name in ("core_metric", "demo_score"):
        if name in scores:
            mean, stderr = scores[name], scores[f"{name}/stderr"]
            yield [name, "", "", "", f"{mean:.4f}", f"{stderr:.4f}"]
