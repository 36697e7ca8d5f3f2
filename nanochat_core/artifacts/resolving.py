"""From what people type to an artifact: aliases and the first characters of fingerprints."""

import re
from itertools import islice

from nanochat_core.artifacts.records import Aliases, Manifests
from nanochat_core.artifacts.types import ArtifactRef
from nanochat_core.errors import ArtifactNotFoundError, DamagedFileError

_PLACE = re.compile(r"^(?P<station>[a-z][a-z0-9_]*)/(?P<start>[0-9a-f]{1,64})$")
_FINGERPRINT_START = re.compile(r"^[0-9a-f]{6,64}$")
_SHOWN = 12


def resolve_name(name: str, aliases: Aliases, manifests: Manifests, url: str) -> ArtifactRef:
    """See `ArtifactStore.resolve`."""
    if name in aliases.names():
        return _from_alias(name, aliases)
    matches = _matches(name, manifests)
    # Read no more than what is said: a short name may stand for thousands.
    valid = (m.ref for m in (manifests.newest(*place) for place in matches) if m is not None)
    found = list(islice(valid, _SHOWN))
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{ref.station}/{ref.fingerprint[:16]}" for ref in found)
        how_many = len(found) if len(found) < _SHOWN else f"{_SHOWN} or more of {len(matches)}"
        raise ArtifactNotFoundError(
            f"{name!r} stands for {how_many} artifacts: {listed}. Give more characters."
        )
    raise ArtifactNotFoundError(_nothing_there(name, aliases, manifests, url))


def _from_alias(name: str, aliases: Aliases) -> ArtifactRef:
    try:
        ref = aliases.read(name)
    except DamagedFileError as error:
        raise DamagedFileError(
            f"{error} Run the line again, which sets it anew, or name an artifact by its "
            "fingerprint."
        ) from error
    if ref is None:
        raise ArtifactNotFoundError(f"The alias {name!r} has just been removed.")
    return ref


def _matches(name: str, manifests: Manifests) -> list[tuple[str, str]]:
    if place := _PLACE.match(name):
        station, start = place["station"], place["start"]
    elif _FINGERPRINT_START.match(name):
        station, start = None, name
    else:
        return []
    return [found for found in manifests.artifacts(station) if found[1].startswith(start)]


def _nothing_there(name: str, aliases: Aliases, manifests: Manifests, url: str) -> str:
    places = [f"{station}/{fingerprint[:8]}" for station, fingerprint in manifests.artifacts()]
    if not places:
        return f"{name!r} names nothing: the store {url} is empty. Run a preset first."
    known = ", ".join(aliases.names()[:_SHOWN]) or "none"
    listed = ", ".join(places[:_SHOWN]) + (", …" if len(places) > _SHOWN else "")
    return (
        f"{name!r} names nothing in the store {url}. Aliases: {known}. Artifacts: {listed}. "
        "Give an alias, station/fingerprint, or six or more characters of a fingerprint."
    )
