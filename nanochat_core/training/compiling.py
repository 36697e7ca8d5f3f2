"""Which functions of training are compiled."""

import torch

from nanochat_core.model.gpt import GPT
from nanochat_core.training.step import LossFunction


def loss_function(model: GPT, *, compiled: bool) -> LossFunction:
    """The summed loss of a micro-batch; eager on mps, which has no compiler."""

    def loss_sum(
        inputs_BT: torch.Tensor,
        targets_BT: torch.Tensor,
        token_weights_BT: torch.Tensor | None = None,
        /,
    ) -> torch.Tensor:
        loss: torch.Tensor
        if token_weights_BT is None:
            loss = model(inputs_BT, targets_BT, reduction="sum")
        else:
            losses_BT = model(inputs_BT, targets_BT, reduction="none")
            loss = (losses_BT * token_weights_BT).sum()
        return loss

    if not compiled or model.device.type == "mps":
        return loss_sum
    return torch.compile(loss_sum, dynamic=False)
