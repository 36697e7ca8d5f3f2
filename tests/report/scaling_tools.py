"""A law that is known, at sizes and budgets that are run, and points of it with noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from nanochat_core.report.sweeps.isoflop import (
    PARAMETERS,
    RATIO,
    TOKENS,
    Laws,
    ScalingPoint,
    fit_laws,
)

BUDGETS = tuple(float(c) for c in np.geomspace(1e18, 1e21, 5))
DEPTHS = (8, 10, 12, 14, 16, 18, 20)
DEPTH_BUDGETS = tuple(float(c) for c in np.geomspace(1e18, 2.15e19, 5))


@dataclass(frozen=True)
class Law:
    """L = E + A / N^a + B / D^b, with the numbers of arXiv:2203.15556."""

    constant: float = 1.69
    by_size: float = 406.4
    by_tokens: float = 410.7
    alpha: float = 0.34
    beta: float = 0.28

    def loss(self, size: float, tokens: float) -> float:
        return self.constant + self.by_size / size**self.alpha + self.by_tokens / tokens**self.beta

    @property
    def exponents(self) -> dict[str, float]:
        """Of the best sizes at C = 6 N D, which follow from the law."""
        a = self.beta / (self.alpha + self.beta)
        return {PARAMETERS: a, TOKENS: 1 - a, RATIO: 1 - 2 * a}

    def best(self, flops: float) -> dict[str, float]:
        together = self.alpha + self.beta
        steepness = self.alpha * self.by_size / (self.beta * self.by_tokens)
        size = steepness ** (1 / together) * (flops / 6) ** (self.beta / together)
        tokens = flops / 6 / size
        return {PARAMETERS: size, TOKENS: tokens, RATIO: tokens / size}


CHINCHILLA = Law()


def sizes_about_the_best(flops: float, factor: float = 20.0, number: int = 7) -> list[float]:
    """Over a factor in all, and with the best a little off their middle."""
    middle = CHINCHILLA.best(flops)[PARAMETERS] * 1.35
    return [float(size) for size in middle * np.geomspace(factor**-0.5, factor**0.5, number)]


def sizes_of_depths() -> list[float]:
    """The same at all budgets: width 64 d, 12 d width² in the blocks, a head of 32,768 tokens."""
    return [49_152.0 * d**3 + 32_768 * 64.0 * d for d in DEPTHS]


def noisy_points(
    noise: float,
    seed: int,
    *,
    budgets: Sequence[float] = BUDGETS,
    same_sizes: bool = False,
    factor: float = 20.0,
    law: Law = CHINCHILLA,
) -> list[ScalingPoint]:
    """Every budget at seven sizes, the loss off by a share of it that is normal."""
    chance = np.random.default_rng(seed)
    points = []
    for flops in budgets:
        for size in sizes_of_depths() if same_sizes else sizes_about_the_best(flops, factor):
            parameters, tokens = round(size), round(flops / 6 / size)
            loss = law.loss(parameters, tokens) * (1 + noise * chance.standard_normal())
            label = f"C={flops:.3g},N={parameters}"
            points.append(ScalingPoint(label, flops, flops, parameters, tokens, float(loss)))
    return points


@cache
def laws_of_seed(noise: float, seed: int) -> Laws:
    """What is found of the points of a seed."""
    return fit_laws(noisy_points(noise, seed))
