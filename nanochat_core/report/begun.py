"""Where a training began that took its first steps from another run."""

from nanochat_core.artifacts.types import Manifest
from nanochat_core.report.numbers import is_number


def first_step(manifest: Manifest) -> int:
    """The step at which a training started: 0, or where a shared beginning ended."""
    said = manifest.provenance.get("started_from_step", 0)
    return int(said) if is_number(said) else 0


def began_with(manifest: Manifest, mark: str = "") -> str:
    """What a run took over, its name between marks; '' if it trained every step itself."""
    begun = str(manifest.provenance.get("started_from", ""))
    if not begun:
        return ""
    station, _, fingerprint = begun.partition("/")
    name = f"{mark}{station}/{fingerprint[:8]}{mark}"
    return f"began with the first {first_step(manifest):,} steps of {name}"
