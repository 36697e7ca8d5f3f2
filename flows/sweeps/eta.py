"""How long a sweep will still take, from what was predicted of its points and what they took."""

from collections.abc import Sequence


class TimeLeft:
    """Predicted seconds of what is not made yet, by how right the predictions were so far."""

    def __init__(self, predicted: Sequence[float | None], jobs: int = 1) -> None:
        self._left = dict(enumerate(predicted))
        self._jobs = jobs
        self._predicted = self._took = 0.0

    def ended(self, place: int, seconds: float, *, was_made: bool) -> None:
        """Take note that a point has ended; what was made tells how right the prediction was."""
        predicted = self._left.pop(place, None)
        if was_made and predicted:
            self._predicted += predicted
            self._took += seconds

    @property
    def seconds(self) -> float | None:
        """Until all points are made; None where a point has no prediction."""
        left = [seconds for seconds in self._left.values() if seconds is not None]
        if len(left) < len(self._left):
            return None
        ratio = self._took / self._predicted if self._predicted else 1.0
        # The longest point takes its time however many are made at once.
        return ratio * max(sum(left) / self._jobs, max(left, default=0.0))
