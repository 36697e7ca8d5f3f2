"""The smallest model that the training benchmark can be asked for."""

from nanochat_core.bench.train import parser, setup_of
from nanochat_core.bench.train_setup import Parts, Setup, build
from nanochat_core.distributed.ranks import Ranks

TINY = (
    *("--depth", "2", "--sequence-len", "32", "--vocab-size", "256", "--tokens-per-step", "128"),
    *("--dtype", "float32", "--device", "cpu", "--device-batch-size", "2", "--compile", "off"),
)


def setup(*options: str) -> Setup:
    """What these options ask for, on top of the smallest model; later ones win."""
    return setup_of(parser().parse_args([*TINY, *options]))


def tiny_parts(*options: str) -> Parts:
    """A model that is ready to train."""
    return build(setup(*options), Ranks.single(), None)
