"""Muon for one matrix in float64, written from RECIPE section 2 step by step, with loops.

It shares nothing with the code under test; the triples of Polar Express are typed again.
"""

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

TRIPLES = [
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
]


class PlainMuon:
    """One matrix and its state."""

    def __init__(self, weight: Matrix) -> None:
        self.weight = weight.copy()
        self.momentum = np.zeros_like(weight)
        self.second = np.zeros(max(weight.shape))

    def step(self, grad: Matrix, *, lr: float, mu: float, beta2: float, decay: float) -> None:
        """The seven steps; step 2, the work dtype, is float64 here."""
        rows, cols = grad.shape
        self.momentum = self.momentum + (1 - mu) * (grad - self.momentum)
        update = grad + mu * (self.momentum - grad)
        update = polar(equilibrated(update))
        update = update * min(rows, cols) ** 0.5 / max(np.linalg.norm(update), 1e-6)
        update = self._evened(update, beta2)
        lr = lr * max(1.0, rows / cols) ** 0.5
        for i in range(rows):
            for j in range(cols):
                w, u = self.weight[i, j], update[i, j]
                self.weight[i, j] = w - lr * u - (lr * decay * w if u * w >= 0 else 0.0)

    def _evened(self, update: Matrix, beta2: float) -> Matrix:
        """Step 6, line by line: lines are rows when tall or square, else columns."""
        is_tall = update.shape[0] >= update.shape[1]
        lines = update.copy() if is_tall else update.T.copy()
        for i, line in enumerate(lines):
            mean_square = float(np.mean(line * line))
            self.second[i] += (1 - beta2) * (mean_square - self.second[i])
        evened = np.stack(
            [x / max(s, 1e-10) ** 0.5 for x, s in zip(lines, self.second, strict=True)]
        )
        evened *= np.linalg.norm(lines) / max(np.linalg.norm(evened), 1e-10)
        return evened if is_tall else evened.T


def equilibrated(x: Matrix) -> Matrix:
    """Step 3: each row scaled by (norm of x / sqrt(rows)) / norm of the row."""
    target = np.linalg.norm(x) / len(x) ** 0.5
    return np.stack([row * target / max(float(np.linalg.norm(row)), 1e-6) for row in x])


def polar(x: Matrix) -> Matrix:
    """Step 4: the quintics act on singular values only, so they are applied to those."""
    x = x / (1.01 * np.linalg.norm(x) + 1e-6)
    u, singular, vt = np.linalg.svd(x, full_matrices=False)
    for a, b, c in TRIPLES:
        singular = a * singular + b * singular**3 + c * singular**5
    return u @ np.diag(singular) @ vt
