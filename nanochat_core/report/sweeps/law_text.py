"""Scaling laws in words and tables, as CSV and as JSON."""

import csv
import io
import math
from collections.abc import Callable, Iterator
from typing import Any

from nanochat_core.report.markdown import NOTHING, Lines, section, table
from nanochat_core.report.sweeps.isoflop import (
    AXES,
    PARAMETERS,
    RATIO,
    TOKENS,
    Budget,
    Estimate,
    Joint,
    Laws,
)
from nanochat_core.report.sweeps.law_checks import prediction_warning, warnings_of

UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
SHORTENED_FROM, POWERS_FROM = 1e4, 1e15
NOT_TOLD = "not told"
PREDICTED = (10.0,)
"""Times the largest budget: what the page says of."""

Row = tuple[str, str, str, float | None, Estimate]
"""Quantity, axis, by what, FLOPs if of one budget, and the number."""


def laws_markdown(laws: Laws) -> Lines:
    """A section: exponents, the best size of every budget, what to doubt, and what it predicts."""
    largest = max(budget.flops for budget in laws.budgets)
    return section(
        "Scaling laws",
        _headline(laws.joint) if laws.joint else [],
        [f"- **Note:** {sentence}" for sentence in warnings_of(laws)],
        _optima(laws),
        [line for times in PREDICTED for line in prediction_lines(laws, times * largest)],
        _how(laws),
    )


def _headline(joint: Joint) -> Lines:
    size, tokens, ratio = (decimals(joint.exponents[axis]) for axis in (PARAMETERS, TOKENS, RATIO))
    return [
        f"Best at a compute C: parameters N ~ C^x with x = {size}, tokens D ~ C^x with "
        f"x = {tokens}. In the middle of the budgets ({math.exp(joint.surface.pivot):.3g} FLOPs) "
        f"that is **{said(joint.middle[RATIO])} tokens per parameter**; it changes as C^x with "
        f"x = {ratio}. In brackets: 95 % intervals."
    ]


def _optima(laws: Laws) -> Lines:
    """The best sizes of every budget, by its own points and by all."""
    titles = ["FLOPs:", "points:", "D/N measured:", "best D/N by own points:"]
    titles += ["best D/N by all:", "best N by all:", "best D by all:"]
    return table(titles, [_budget_row(laws, budget) for budget in laws.budgets])


def _budget_row(laws: Laws, budget: Budget) -> list[str]:
    low, high = budget.extent(RATIO)
    own = laws.curves[RATIO].optima.get(budget.flops) if laws.curves else None
    by_all = laws.joint.optima[budget.flops] if laws.joint else {}
    return [
        f"{budget.flops:.3g}",
        str(len(budget.points)),
        f"{shown(low)} to {shown(high)}",
        said(own),
        *(said(by_all.get(axis)) for axis in (RATIO, PARAMETERS, TOKENS)),
    ]


def prediction_lines(laws: Laws, flops: float) -> Lines:
    """What the laws say of a compute, with a warning if it was not measured."""
    prediction = laws.predict(flops)
    if prediction is None:
        return []
    size, tokens, ratio = (said(prediction.best[axis]) for axis in (PARAMETERS, TOKENS, RATIO))
    bpb = _text(prediction.bpb, "{:.3f}".format, 0.0)
    warning = prediction_warning(laws, prediction)
    end = f" **Note:** {warning}." if warning else ""
    return [
        f"At {flops:.3g} FLOPs: N {size}, D {tokens}, D/N {ratio}, and {bpb} bits per byte.{end}"
    ]


def _how(laws: Laws) -> Lines:
    parts = []
    if laws.joint:
        size, tokens = laws.joint.surface.exponents
        floor, _ = laws.joint.surface.constants()
        scatter = laws.joint.surface.noise
        about = f"; points scatter by {scatter.sd:.2%} about it" if scatter.dof > 0 else ""
        # A fit of E alone has left a and b where it began.
        level = laws.joint.surface.is_level
        found = "" if level else f", a = {size:.3g} and b = {tokens:.3g}"
        parts.append(
            "*By all*: bpb = E + A / N^a + B / D^b, fitted to all points, with "
            f"E = {floor:.3g}{found}{about}."
        )
    if laws.curves:
        noise = laws.curves[RATIO].noise
        scatter_text = (
            f" Points scatter by {noise.sd:.2%} about these ({noise.dof} points to spare)."
            if noise.dof
            else ""
        )
        parts.append(
            "*By own points*: a curve through the points of the budget alone, near a parabola of "
            f"ln(bpb); no end where its curvature could be nothing.{scatter_text}"
        )
    if parts:
        parts.append("Intervals are about chance, not about other data, recipes or formulas.")
    return [" ".join(parts)] if parts else []


def decimals(estimate: Estimate, digits: int = 3) -> str:
    """`0.446 (0.413 to 0.483)`, as `said`."""
    return _text(estimate, f"{{:.{digits}f}}".format, -math.inf)


def said(estimate: Estimate | None) -> str:
    """`21.4 (18.2 to 25.1)`; where an end or the interval is not known it says so."""
    return NOTHING if estimate is None else _text(estimate, shown, 0.0)


def _text(estimate: Estimate, text: Callable[[float], str], nothing: float) -> str:
    interval, value = estimate.interval, text(estimate.value)
    if interval is None:
        return f"{value} (no interval)"
    low = text(interval.low) if interval.low > nothing else ""
    high = text(interval.high) if math.isfinite(interval.high) else ""
    if low and high:
        return f"{value} ({low} to {high})"
    if low or high:
        return f"{value} ({low} or more)" if low else f"{value} ({high} or less)"
    # Any number will do, so the best of them is none to quote.
    return NOT_TOLD


def shown(number: float) -> str:
    """`21.4`, `84.2M`, `1.31e+17`."""
    if SHORTENED_FROM <= number < POWERS_FROM:
        unit, letter = next((unit, letter) for unit, letter in UNITS if number >= unit)
        scaled = number / unit
        return f"{scaled:,.0f}{letter}" if scaled >= 100 else f"{scaled:.3g}{letter}"
    return f"{number:,.0f}" if 1000 <= number < POWERS_FROM else f"{number:.3g}"


def laws_csv(laws: Laws) -> str:
    """A line a number; an end that is not known is 0 or infinite, and no interval is empty.

    Without either end the number is empty, too: any would do, which the page calls not told.
    """
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["quantity", "axis", "by", "budget_flops", "value", "low", "high"])
    for quantity, axis, by, flops, estimate in _rows(laws):
        interval = estimate.interval
        ends = [_digits(interval.low), _digits(interval.high)] if interval else ["", ""]
        budget = "" if flops is None else f"{flops:.6g}"
        value = _digits(estimate.value) if _is_told(estimate) else ""
        writer.writerow([quantity, axis, by, budget, value, *ends])
    return out.getvalue()


def _rows(laws: Laws) -> Iterator[Row]:
    for axis in AXES:
        if laws.curves:
            for flops, estimate in laws.curves[axis].optima.items():
                if estimate:
                    yield "optimum", axis, "own points", flops, estimate
        if laws.joint:
            for flops, optima in laws.joint.optima.items():
                yield "optimum", axis, "all points", flops, optima[axis]
            yield "exponent", axis, "all points", None, laws.joint.exponents[axis]


def laws_values(laws: Laws) -> dict[str, Any]:
    """For JSON: null for an interval that there is none of, an open end, and what is not told."""
    return {
        "points": len(laws.points),
        "budgets": [budget.flops for budget in laws.budgets],
        "numbers": [
            {
                "quantity": quantity,
                "axis": axis,
                "by": by,
                "budget_flops": flops,
                **_value(estimate),
            }
            for quantity, axis, by, flops, estimate in _rows(laws)
        ],
        "surface": _surface(laws.joint) if laws.joint else None,
        "scatter_about_curves": _finite(laws.curves[RATIO].noise.sd) if laws.curves else None,
        "warnings": warnings_of(laws),
    }


def _value(estimate: Estimate) -> dict[str, Any]:
    interval = estimate.interval
    ends = [_finite(interval.low) or None, _finite(interval.high)] if interval else None
    return {"value": _finite(estimate.value) if _is_told(estimate) else None, "interval": ends}


def _is_told(estimate: Estimate) -> bool:
    """Whether its interval has an end; one of units that is open below ends at 0."""
    interval = estimate.interval
    return interval is None or interval.low not in (0.0, -math.inf) or interval.high < math.inf


def _surface(joint: Joint) -> dict[str, Any]:
    surface = joint.surface
    floor, reducible = surface.constants()
    size, tokens = surface.exponents
    return {
        "E": _finite(floor),
        "a": None if surface.is_level else _finite(size),
        "b": None if surface.is_level else _finite(tokens),
        "above_E": _finite(reducible),
        "above_E_at_flops": _finite(math.exp(surface.pivot)),
        "scatter": _finite(surface.noise.sd),
        "degrees_of_freedom": surface.noise.dof,
    }


def _finite(number: float) -> float | None:
    return float(_digits(number)) if math.isfinite(number) else None


def _digits(number: float) -> str:
    """As many as an end of an interval is found to; and the same on every machine, but for luck."""
    return f"{number:.4g}"
