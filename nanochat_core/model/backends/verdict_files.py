"""Verdicts of trials in a folder: one file for each machine and way to compute."""

import contextlib
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch.utils import collect_env

from nanochat_core.model.backends.hardware import hardware_of
from nanochat_core.model.backends.trial import Verdict

log = logging.getLogger(__name__)

FORMAT = 1
PACKAGES = (
    *("flash-attn-4", "nvidia-cutlass-dsl", "quack-kernels"),
    *("flash-attn-3", "flash-attn", "xformers", "kernels", "triton"),
)
"""Whose versions decide what a backend computes and how fast."""
DRIVER_FILE = Path("/proc/driver/nvidia/version")

Key = dict[str, Any]


def verdict_key(device: torch.device, dtype: torch.dtype, head_dim: int) -> Key:
    """Everything that a verdict depends on; another key is another file."""
    hardware = hardware_of(device)
    return {
        "device": hardware.name if device.type == "cuda" else platform.machine(),
        "capability": None if hardware.capability is None else list(hardware.capability),
        "driver": driver_version() if device.type == "cuda" else "",
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "code": code_version(),
        "dtype": str(dtype).removeprefix("torch."),
        "head_dim": head_dim,
        "matmul_precision": torch.get_float32_matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


def driver_version(file: Path = DRIVER_FILE) -> str:
    """The driver's own line about itself, or what its tool says where Linux has no such file."""
    if file.is_file():
        return file.read_text().splitlines()[0]
    tool: Any = collect_env
    return tool.get_nvidia_driver_version(tool.run) or ""


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_version() -> str:
    """Hex sha256 of the sources of all backends: whoever changes one measures again."""
    folder = Path(__file__).parent
    hashed = hashlib.sha256()
    for path in [*sorted(folder.glob("*.py")), folder.parent / "attention.py"]:
        hashed.update(path.read_bytes())
    return hashed.hexdigest()


def verdict_file(folder: Path, key: Key) -> Path:
    """Where the verdicts of a key are."""
    return folder / f"attention-{_sha256(key)[:16]}.json"


def read_verdicts(folder: Path | None, key: Key) -> dict[str, Verdict]:
    """What is known of each backend; nothing where the file is damaged, foreign or not there."""
    if folder is None:
        return {}
    path = verdict_file(folder, key)
    try:
        content = json.loads(path.read_bytes())
        body = {"format": FORMAT, "key": key, "verdicts": content["verdicts"]}
        if content != {**body, "sha256": _sha256(body)}:
            raise ValueError("not written by this program for this machine, or changed since")
        verdicts = [Verdict(**values) for values in content["verdicts"]]
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, KeyError) as error:
        log.warning("attention is tried again, since %s cannot be used: %s", path, error)
        return {}
    return {verdict.backend: verdict for verdict in verdicts}


def write_verdicts(folder: Path | None, key: Key, verdicts: Iterable[Verdict]) -> None:
    """Keep those that will still hold; a folder that cannot be written costs only the next trial.

    Ranks that write at the same time each put a whole file in place.
    """
    if folder is None:
        return
    kept = [asdict(verdict) for verdict in verdicts if verdict.is_lasting]
    body = {"format": FORMAT, "key": key, "verdicts": kept}
    path = verdict_file(folder, key)
    temporary = path.with_name(f"{path.name}.{uuid4().hex}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**body, "sha256": _sha256(body)}, indent=1))
        os.replace(temporary, path)
    except OSError as error:
        log.warning("verdicts on attention are not kept: %s", error)
        with contextlib.suppress(OSError):
            temporary.unlink()


def _sha256(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
