"""What a reader of scaling laws has to be warned of: extrapolation, hills, a formula off."""

import math
from collections.abc import Sequence

from scipy import stats

from nanochat_core.report.sweeps.fits import MIN_PLACES
from nanochat_core.report.sweeps.isoflop import PARAMETERS, RATIO, Budget, Joint, Laws, Prediction

NOT_BY_CHANCE = 0.01
"""A misfit of a smaller probability is told."""
MUCH_BEYOND = 1.05
"""Compute within this factor of the measured budgets is not called beyond them."""
LEAST_ROOM = 1.01
"""A bottom must be inside the measured sizes by this factor."""


def warnings_of(laws: Laws) -> list[str]:
    """Sentences, the gravest first; none of a sweep that tells all that it was made for."""
    outside = _outside(laws.joint, laws.budgets) if laws.joint else []
    return [*_too_few(laws), *_misfit(laws), *outside, *_of_budgets(laws), *_of_ratio(laws)]


def prediction_warning(laws: Laws, prediction: Prediction) -> str:
    """That a prediction extrapolates, and how far; '' inside the measured budgets."""
    if prediction.beyond < MUCH_BEYOND:
        return ""
    spent = [math.exp(budget.t) for budget in laws.budgets]
    return (
        f"this extrapolates by a factor of {prediction.beyond:,.3g} from what was measured "
        f"({min(spent):.3g} to {max(spent):.3g}), and the interval does not know whether the law "
        "holds there"
    )


def _too_few(laws: Laws) -> list[str]:
    said = []
    if len(laws.budgets) < 2:
        said.append("One budget says nothing of how the best size grows with compute; add others.")
    elif laws.joint is None:
        said.append("A law over all budgets takes five points of three sizes or more; add depths.")
    elif laws.joint.surface.noise.dof <= 0:
        said.append("The law over all budgets has no point to spare for intervals; add some.")
    if not laws.curves:
        said.append(
            f"No budget has the {MIN_PLACES} sizes that a valley takes, so none has a best size "
            "by its own points; add depths."
        )
    elif not laws.curves[RATIO].noise.dof:
        said.append(
            "The valleys have too few points to spare to tell chance, so the best sizes by the "
            "budgets' own points have no intervals; add depths."
        )
    return said


def _of_budgets(laws: Laws) -> list[str]:
    sizes = {point.scaling_parameters for point in laws.points}
    said = []
    for budget in laws.budgets:
        own = {point.scaling_parameters for point in budget.points}
        if laws.curves and not budget.has_valley:
            said.append(f"{name_of(budget)}: {len(own)} of the {MIN_PLACES} sizes of a valley.")
        if missing := sorted(sizes - own) if _shares_sizes(laws) else []:
            listed = ", ".join(f"{size:,}" for size in missing)
            said.append(f"{name_of(budget)}: no point with N = {listed}, which others have.")
        if place := _bottom_warning(laws, budget):
            said.append(f"{name_of(budget)}: {place}")
    return said


def _shares_sizes(laws: Laws) -> bool:
    """Whether budgets were to have the same sizes: most sizes are at most of the budgets."""
    sizes = [point.scaling_parameters for point in laws.points]
    return len(sizes) > len(set(sizes)) * len(laws.budgets) / 2


def _bottom_warning(laws: Laws, budget: Budget) -> str:
    """By parameters: tokens and their ratio say the same."""
    if not laws.curves or not budget.has_valley:
        return ""
    bottom = laws.curves[PARAMETERS].optima[budget.flops]
    if bottom is None:
        return (
            "bits per byte have no bottom over the measured sizes by its own points; "
            "add smaller and larger depths."
        )
    low, high = budget.extent(PARAMETERS)
    if low * LEAST_ROOM <= bottom.value <= high / LEAST_ROOM:
        return ""
    side = "smaller" if bottom.value < low * LEAST_ROOM else "larger"
    return (
        "the bottom is outside the measured sizes, so the best size by its own points is "
        f"extrapolated; add {side} depths."
    )


def _outside(joint: Joint, budgets: Sequence[Budget]) -> list[str]:
    """Of the best sizes by all points: which budgets have theirs outside all measured sizes."""
    if joint.surface.is_level:
        return [
            "By all points bits per byte do not fall as sizes and tokens grow, so no best size is "
            "told; add budgets that are farther apart."
        ]
    said = []
    for sign, side in ((-1.0, "smaller"), (1.0, "larger")):
        found = [b for b in budgets if sign * joint.surface.outside_at(b.t) > math.log(LEAST_ROOM)]
        for is_told, where in ((True, "outside"), (False, "far outside")):
            own = [b for b in found if joint.surface.tells_size_at(b.t) == is_told]
            if own:
                said.append(
                    f"{', '.join(map(name_of, own))}: the best size by all points is {where} the "
                    f"measured sizes, so it is {'extrapolated' if is_told else 'not told'}; "
                    f"add {side} depths."
                )
    return said


def _of_ratio(laws: Laws) -> list[str]:
    exponent = laws.joint and laws.joint.exponents[RATIO].interval
    if exponent and not exponent.is_bounded:
        return [
            "The points do not tell how the best size grows with compute: its exponent has an open "
            "end; add sizes on the far side of the best, or budgets."
        ]
    if not exponent or exponent.contains(0.0):
        return []
    return [
        "The best tokens per parameter change with compute: use the number of the budget, "
        "not one for all."
    ]


def _misfit(laws: Laws) -> list[str]:
    said = []
    if misfit(laws) < NOT_BY_CHANCE:
        said.append(
            "bpb = E + A / N^a + B / D^b fits these points worse than chance would have it: rely "
            "on the best sizes by the budgets' own points, and doubt exponents and predictions."
        )
    if laws.joint and not laws.joint.surface.constants()[0]:
        said.append(
            "The points do not show the floor E, which the fit puts at 0: bits per byte far beyond "
            "them come out too low."
        )
    return said


def misfit(laws: Laws) -> float:
    """How probable it is that the surface leaves so much more than the valleys by chance.

    The F test of nested models, which these nearly are: a valley follows the surface's own within
    0.1 % over a factor of 100 in size.
    """
    if not laws.joint or not all(budget.has_valley for budget in laws.budgets):
        return 1.0
    valleys, surface = laws.curves[PARAMETERS].noise, laws.joint.surface.noise
    restrictions = surface.dof - valleys.dof
    if not valleys.dof or not valleys.variance or restrictions <= 0:
        return 1.0
    more = surface.variance * surface.dof - valleys.variance * valleys.dof
    return float(stats.f.sf(more / restrictions / valleys.variance, restrictions, valleys.dof))


def name_of(budget: Budget) -> str:
    """`4.64e+18 FLOPs`."""
    return f"{budget.flops:.3g} FLOPs"
