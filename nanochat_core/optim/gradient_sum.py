"""The sum of a rank's micro-batch gradients in binary-tree order."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from nanochat_core.errors import TrainingError


class GradientSum:
    """Adds micro-batch gradients pairwise, like a binary counter, so that the order is fixed.

    After n micro-batches at most log2(n) + 1 copies of the gradient are alive; a single
    micro-batch costs no copy. Use: `add()` after each backward, `total()` before the step.
    """

    def __init__(self, params: Iterable[Parameter]) -> None:
        self._params = list(params)
        # (number of micro-batches in the sum, the sum), largest first.
        self._stack: list[tuple[int, list[Tensor]]] = []

    def add(self) -> None:
        """Move the gradients of the backward pass just done out of the parameters.

        Raises:
            TrainingError: a parameter has no gradient.
        """
        gradients = [self._taken(param) for param in self._params]
        count = 1
        while self._stack and self._stack[-1][0] == count:
            _, older = self._stack.pop()
            torch._foreach_add_(older, gradients)
            gradients, count = older, 2 * count
        self._stack.append((count, gradients))

    def total(self) -> None:
        """Put the sum of everything added since the last total into the parameters' `grad`.

        Raises:
            TrainingError: nothing was added.
        """
        if not self._stack:
            raise TrainingError("no gradient to sum: call add() after each backward first")
        _, total = self._stack.pop()
        while self._stack:
            _, older = self._stack.pop()
            torch._foreach_add_(older, total)
            total = older
        for param, gradient in zip(self._params, total, strict=True):
            param.grad = gradient

    def _taken(self, param: Parameter) -> Tensor:
        gradient = param.grad
        if gradient is None:
            raise TrainingError(
                f"a parameter of shape {tuple(param.shape)} got no gradient; every parameter of "
                "the optimizer must take part in the loss"
            )
        param.grad = None
        return gradient.detach()
