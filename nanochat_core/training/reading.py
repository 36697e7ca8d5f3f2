"""What a step leaves on the device for the host: its loss, whether it counts, the ranks' votes.

The host reads it when the device has come that far; on a GPU that is a step later, so that the
device never waits for the host.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from nanochat_core.distributed.collectives import all_reduce
from nanochat_core.distributed.ranks import Ranks


@dataclass(frozen=True)
class Votes:
    """What one rank asks all ranks to do after the step."""

    stop: bool = False
    save: bool = False


NO_VOTES = Votes()


@dataclass(frozen=True)
class StepValues:
    """The same on every rank. `healthy`: the loss and every gradient are finite."""

    loss_nats: float
    healthy: bool
    stop: bool
    save: bool


class Reading:
    """One step's values on their way to the host.

    `healthy` is a 0-d bool on the device, for work there that depends on it.
    """

    def __init__(self, summed_4: torch.Tensor) -> None:
        self.healthy = torch.isfinite(summed_4[:2]).all()
        self._values: StepValues | None = None
        self._event: torch.cuda.Event | None = None
        self._host_4 = summed_4
        if summed_4.is_cuda:
            self._host_4 = torch.empty(4, dtype=torch.float32, pin_memory=True)
            self._host_4.copy_(summed_4, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    @classmethod
    def of_step(
        cls,
        loss_share: torch.Tensor,
        gradients: Iterable[torch.Tensor],
        votes: Votes,
        ranks: Ranks,
    ) -> "Reading":
        """Sum over ranks, in one message, what this rank knows after its backward passes.

        The gradients are this rank's part, before any sum over ranks: their norm is not finite
        wherever one of them is not.
        """
        norm = torch.nn.utils.get_total_norm(gradients)
        asked = torch.tensor([float(votes.stop), float(votes.save)])
        is_cuda = ranks.device.type == "cuda"
        if is_cuda:
            # Memory that is not pinned would make the host wait for the device.
            asked = asked.pin_memory()
        own = torch.stack([loss_share.float(), norm.float()])
        own_4 = torch.cat([own, asked.to(ranks.device, non_blocking=is_cuda)])
        return cls(all_reduce(own_4, ranks).wait())

    def wait(self) -> StepValues:
        """The values, once the device has them."""
        if self._values is None:
            if self._event is not None:
                self._event.synchronize()
            loss, _, stop, save = self._host_4.tolist()
            healthy = bool(self._host_4[:2].isfinite().all())
            self._values = StepValues(loss, healthy, stop=stop > 0, save=save > 0)
        return self._values
