"""Write a comparison: a page, its plots, everything as JSON, and every run as a line of CSV."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nanochat_core.conversation.markdown import escape
from nanochat_core.report.comparing.budgets import (
    Budget,
    amount_text,
    budgets,
    spent_to_draw_level,
)
from nanochat_core.report.comparing.noise import Sample
from nanochat_core.report.comparing.plots import TITLES, draw_comparison
from nanochat_core.report.comparing.sides import AXES, Axis, Comparison, Repeat, Side
from nanochat_core.report.comparing.verdicts import (
    Verdict,
    conclusion,
    judge,
    needed_commands,
    noise_words,
)
from nanochat_core.report.markdown import section, table
from nanochat_core.report.numbers import duration

PAGE_FILE, JSON_FILE, CSV_FILE = "compare.md", "compare.json", "compare.csv"
SHOWN_DIFFERENCES = 12
_SPENT: dict[Axis, str] = {"steps": "steps", "flops": "FLOPs", "seconds": "time"}
METHOD = (
    "Intervals and p values are those of Welch's test; where only one side is repeated, its spread "
    "is taken for both (Student's t). Of several comparisons p values are adjusted, and intervals "
    "widened, so that all together find a gain that is none in one case of twenty (Holm)."
)


@dataclass(frozen=True)
class Judged:
    """A comparison with all that follows from it."""

    comparison: Comparison
    verdicts: list[Verdict]
    budgets: list[Budget]

    @classmethod
    def of(cls, comparison: Comparison) -> "Judged":
        """Work it out."""
        return cls(comparison, judge(comparison), budgets(comparison))

    def words(self) -> list[str]:
        """Every verdict; of one side alone, how large the noise is."""
        if len(self.comparison.sides) == 1:
            return [noise_words(self.comparison.sides[0], self.comparison.metric)]
        return [verdict.words for verdict in self.verdicts]

    def commands(self) -> list[str]:
        """What to run for more repeats, where they are needed."""
        return needed_commands(self.comparison, self.verdicts)


def write_comparison(judged: Judged, folder: Path) -> list[str]:
    """Write the page, its plots, compare.json and compare.csv; returns the names of all files."""
    folder.mkdir(parents=True, exist_ok=True)
    plots = draw_comparison(judged.comparison, folder)
    page = "\n".join(page_lines(judged, plots))
    (folder / PAGE_FILE).write_text(page, encoding="utf-8")
    text = json.dumps(values_of(judged), indent=1, ensure_ascii=False, allow_nan=False)
    (folder / JSON_FILE).write_text(text + "\n", encoding="utf-8")
    with (folder / CSV_FILE).open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(csv_rows(judged.comparison))
    return [PAGE_FILE, JSON_FILE, CSV_FILE, *plots]


def page_lines(judged: Judged, plots: Sequence[str]) -> list[str]:
    """The page as Markdown."""
    comparison = judged.comparison
    words = [f"* **{escape(line)}**" for line in judged.words()]
    commands = [f"    {command}" for command in judged.commands()]
    pictures = [line for name in plots for line in (f"![{TITLES[name]}]({name})", "")]
    return [
        f"# {escape(_title(comparison))}",
        "",
        *words,
        "",
        *section("Repeats that would help", commands),
        *section(
            "Numbers",
            table(*_right_aligned(summary_rows(judged))),
            table(*_right_aligned(budget_rows(judged))),
            _notes(judged),
        ),
        *section("What differs", *(_differences(side) for side in comparison.sides[1:])),
        *section("Plots", pictures),
        *section("Runs", table(*_right_aligned(run_rows(comparison)))),
    ]


def _title(comparison: Comparison) -> str:
    first, *others = (side.label for side in comparison.sides)
    return f"{', '.join(others)} against {first}" if others else f"Repeats of {first}"


def _right_aligned(rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    if not rows:
        return [], []
    titles, *cells = rows
    head = [titles[0], *(f"{escape(title)}:" for title in titles[1:])]
    return head, [[escape(cell) for cell in row] for row in cells]


def _notes(judged: Judged) -> list[str]:
    comparison = judged.comparison
    said = [*level_words(judged), *_paired_words(judged), comparison.measured, *comparison.notes]
    said += [METHOD] if len(comparison.sides) > 1 else []
    return [f"* {escape(note)}" for note in said]


def _paired_words(judged: Judged) -> list[str]:
    return [
        f"Over the {verdict.paired[0]} pairs of {verdict.letter} and {verdict.against} with equal "
        f"seeds the mean gain is {verdict.paired[1]:+.4f} (95 % interval "
        f"{verdict.paired[2][0]:+.4f} to {verdict.paired[2][1]:+.4f}); for information, the "
        "verdict does not look at pairs."
        for verdict in judged.verdicts
        if verdict.paired is not None
    ]


def _differences(side: Side) -> list[str]:
    lines = [f"**{escape(side.label)}** from the first:", ""]
    return [*lines, *(f"* {escape(text)}" for text in side.differences or ("nothing",))]


def summary_rows(judged: Judged) -> list[list[str]]:
    """A head and a row a side: the final number, and what it took."""
    comparison, metric = judged.comparison, judged.comparison.metric
    head = ["", "runs", f"{metric.name}, mean ± sd"]
    head += [f"better than {comparison.sides[0].letter} by"] if judged.verdicts else []
    head += ["steps", "FLOPs", "time"]
    verdicts = {verdict.letter: verdict for verdict in judged.verdicts}
    rows = []
    for side in comparison.sides:
        named = side.repeats[0]
        row = [side.label, str(len(side.finals)), _mean_text(Sample.of(side.finals))]
        row += [_gain_cell(verdicts.get(side.letter))] if judged.verdicts else []
        seconds = Sample.of([repeat.seconds for repeat in side.repeats]).mean
        row += [f"{named.steps:,}", f"{named.flops:.3g}", duration(seconds)]
        rows.append(row)
    return [head, *rows]


def budget_rows(judged: Judged) -> list[list[str]]:
    """A head and a row a side: the number when all had spent as much, and the gain; or nothing."""
    comparison, metric = judged.comparison, judged.comparison.metric
    first = comparison.sides[0].letter
    if not judged.verdicts or not judged.budgets:
        return []

    def cell(budget: Budget, letter: str) -> str:
        sample = budget.samples[letter]
        if letter == first:
            return _mean_text(sample)
        return f"{_mean_text(sample)} ({metric.gain(budget.samples[first].mean, sample.mean):+.4f})"

    head = [f"at {amount_text(each.axis, each.amount)}" for each in judged.budgets]
    return [
        [f"{metric.name} in training", *head],
        *([s.label, *(cell(each, s.letter) for each in judged.budgets)] for s in comparison.sides),
    ]


def level_words(judged: Judged) -> list[str]:
    """What each side had spent when it was as good as the first one came out."""
    comparison, words = judged.comparison, []
    first = comparison.sides[0].letter
    for side in comparison.sides[1:]:
        shares = [(axis, spent_to_draw_level(comparison, side, axis)) for axis in AXES]
        known = [f"{share:.0%} of {first}'s {_SPENT[axis]}" for axis, share in shares if share]
        if known:
            words.append(f"{side.letter} was as good as {first} came out after {', '.join(known)}.")
    return words


def _mean_text(sample: Sample) -> str:
    shown = f"{sample.mean:.4f}"
    return shown if sample.spread is None else f"{shown} ± {sample.spread.sd:.4f}"


def _gain_cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "-"
    words = {"noise": " (noise)", "unknown": " (noise not known)"}
    return f"{verdict.gain:+.4f}{words.get(verdict.kind, '')}"


def run_rows(comparison: Comparison) -> list[list[str]]:
    """A head and a row a run, each number with the artifact that it is from."""
    head = ["side", "model", "seeds", comparison.metric.name, "measured by", "steps", "time"]
    rows = [
        [
            side.letter,
            repeat.artifact,
            ", ".join(f"{name}={seed}" for name, seed in repeat.seeds.items()),
            "-" if repeat.final is None else f"{repeat.final:.4f}",
            repeat.measured_by or "-",
            f"{repeat.steps:,}",
            duration(repeat.seconds),
        ]
        for side in comparison.sides
        for repeat in side.repeats
    ]
    return [head, *rows]


def csv_rows(comparison: Comparison) -> list[list[str | int | float | None]]:
    """A head and a row a run, numbers as they are."""
    seeds = list(
        dict.fromkeys(n for side in comparison.sides for r in side.repeats for n in r.seeds)
    )
    head = ["side", "name", "model", *seeds, comparison.metric.name, "measured_by"]
    head += ["steps", "tokens", "parameters", "flops", "seconds"]

    def row(side: Side, run: Repeat) -> list[str | int | float | None]:
        own = [side.letter, side.name, run.artifact, *(run.seeds.get(name) for name in seeds)]
        numbers = [run.steps, run.tokens, run.parameters, run.flops, run.seconds]
        return [*own, run.final, run.measured_by, *numbers]

    return [[*head], *(row(side, run) for side in comparison.sides for run in side.repeats)]


def values_of(judged: Judged) -> dict[str, Any]:
    """Everything, as JSON has it."""
    comparison = judged.comparison
    return {
        "metric": comparison.metric.model_dump(),
        "measured": comparison.measured,
        "notes": list(comparison.notes),
        "sides": [_side_values(side) for side in comparison.sides],
        "verdicts": [_verdict_values(judged, verdict) for verdict in judged.verdicts],
        "equal_budgets": [
            {
                "axis": budget.axis,
                "amount": budget.amount,
                "values": {letter: asdict(each) for letter, each in budget.samples.items()},
            }
            for budget in judged.budgets
        ],
    }


def _side_values(side: Side) -> dict[str, Any]:
    return {
        "letter": side.letter,
        "name": side.name,
        "final": asdict(Sample.of(side.finals)),
        "repeats": [asdict(repeat) for repeat in side.repeats],
        "differences": list(side.differences),
        "repeat_command": side.repeat_command,
    }


def _verdict_values(judged: Judged, verdict: Verdict) -> dict[str, Any]:
    side = next(s for s in judged.comparison.sides if s.letter == verdict.letter)
    shares: Mapping[str, float | None] = {
        axis: spent_to_draw_level(judged.comparison, side, axis) for axis in AXES
    }
    return {
        **asdict(verdict),
        "conclusion": conclusion(verdict),
        "share_spent_to_draw_level": dict(shares),
    }
