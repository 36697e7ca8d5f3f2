"""Schedules over a run of n steps, pure functions of the step (torch-free): RECIPE section 2.

A step may be a fraction, for runs that follow consumed / total of their data.
"""

import math

from nanochat_core.optim.recipe import ScheduleRecipe


def lr_multiplier(step: float, num_steps: int, recipe: ScheduleRecipe) -> float:
    """What multiplies every learning rate at `step` (0-based): warm-up, 1, linear warm-down."""
    if step < recipe.warmup_steps:
        return (step + 1) / recipe.warmup_steps
    warmdown = warmdown_steps(num_steps, recipe)
    if step <= num_steps - warmdown:
        return 1.0
    left = (num_steps - step) / warmdown
    return left + recipe.final_lr_fraction * (1.0 - left)


def muon_momentum(step: float, num_steps: int, recipe: ScheduleRecipe) -> float:
    """Muon's momentum at `step`; its ramp goes on inside a warm-down that starts before its end."""
    if step < recipe.momentum_ramp_steps:
        ramp = step / recipe.momentum_ramp_steps
        return _mix(recipe.momentum_start, recipe.momentum_peak, ramp)
    warmdown = warmdown_steps(num_steps, recipe)
    if step <= num_steps - warmdown:
        return recipe.momentum_peak
    done = (step - (num_steps - warmdown)) / warmdown
    return _mix(recipe.momentum_peak, recipe.momentum_end, done)


def weight_decay_multiplier(step: float, num_steps: int, recipe: ScheduleRecipe) -> float:
    """What multiplies Muon's weight decay at `step`: half a cosine from 1 to 0, or always 1."""
    if not recipe.cosine_weight_decay:
        return 1.0
    return 0.5 * (1.0 + math.cos(math.pi * step / num_steps))


def warmdown_steps(num_steps: int, recipe: ScheduleRecipe) -> int:
    """Length of the warm-down in whole steps."""
    return round(recipe.warmdown_fraction * num_steps)


def _mix(start: float, end: float, fraction: float) -> float:
    return (1.0 - fraction) * start + fraction * end
