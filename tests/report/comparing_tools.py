"""Sides of a comparison made of numbers."""

from collections.abc import Sequence

from nanochat_core.report.comparing.sides import Comparison, Curve, Repeat, Side, metric_of

STEPS = (0.0, 100.0, 200.0, 300.0, 400.0)


def curve(final: float, *, seconds_per_step: float = 0.1, steps: Sequence[float] = STEPS) -> Curve:
    """From 3 down to `final`, as losses fall."""
    last = steps[-1]
    return Curve(
        steps=tuple(steps),
        flops=tuple(1e9 * step for step in steps),
        seconds=tuple(seconds_per_step * step for step in steps),
        values=tuple(final + (3 - final) * (1 - step / last) ** 2 for step in steps),
    )


def side(letter: str, finals: Sequence[float], *, name: str = "", pace: float = 0.1) -> Side:
    """A repeat for each number, under the seeds 0, 1, 2, ..."""
    return Side(
        letter=letter,
        name=name or f"model {letter}",
        repeats=tuple(
            Repeat(
                artifact=f"pretrain/{letter}{seed}",
                digest=f"{letter}{seed}",
                seeds={"pretrain.seed": seed},
                final=final,
                measured_by=f"base_eval/{letter}{seed}",
                steps=400,
                tokens=400 * 512,
                parameters=70_000,
                flops=4e11,
                seconds=400 * pace,
                curve=curve(final, seconds_per_step=pace),
            )
            for seed, final in enumerate(finals)
        ),
        repeat_command="" if len(finals) > 2 else f"nanochat run sweep --preset {letter}",
    )


def compared(*sides: Side, metric: str = "bpb") -> Comparison:
    """These sides, the first of them the baseline."""
    return Comparison(metric_of(metric), "Measured by base_eval.", sides)
