"""The two names that users of the model need, imported when they are first asked for."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nanochat_core.inference.checkpoint_manager import CheckpointManager
    from nanochat_core.inference.engine import InferenceEngine

__all__ = ["CheckpointManager", "InferenceEngine"]

_MODULES = {"CheckpointManager": "checkpoint_manager", "InferenceEngine": "engine"}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
