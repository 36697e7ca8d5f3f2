"""What artifacts were made from, back to the shards, by the references in their manifests."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field

from nanochat_core.artifacts.records import Manifests
from nanochat_core.artifacts.types import ArtifactRef, Manifest
from nanochat_core.errors import DamagedFileError

log = logging.getLogger(__name__)

Place = tuple[str, str]
"""Station and fingerprint."""


@dataclass
class Ancestry:
    """Follows references in one store; each manifest is read once."""

    manifests: Manifests
    missing: list[ArtifactRef] = field(default_factory=list)
    """What was referred to and is not there."""
    _read: dict[Place, list[Manifest]] = field(default_factory=dict)

    def valid(self, place: Place) -> list[Manifest]:
        """The undamaged manifests of an artifact, the newest first; damaged ones are logged."""
        if place not in self._read:
            self._read[place] = []
            for number in reversed(self.manifests.numbers(*place)):
                try:
                    self._read[place].append(self.manifests.read(*place, number))
                except DamagedFileError as error:
                    log.warning("%s", error)
        return self._read[place]

    def find(self, ref: ArtifactRef) -> Manifest | None:
        """The manifest that `ref` names, or another with the same digest: it was made anew."""
        equals = [m for m in self.valid((ref.station, ref.fingerprint)) if m.digest == ref.digest]
        exact = (manifest for manifest in equals if manifest.number == ref.manifest)
        return next(exact, equals[0] if equals else None)

    def closure(self, refs: Iterable[ArtifactRef]) -> list[Manifest]:
        """All that `refs` name and all that it was made from, what was made first before the rest.

        What is not there is added to `missing`.
        """
        ordered: dict[ArtifactRef, Manifest] = {}
        seen: set[ArtifactRef] = set()
        # A stack, not recursion: nobody limits how long a line is.
        todo = [(ref, False) for ref in reversed(list(refs))]
        while todo:
            ref, are_inputs_done = todo.pop()
            if are_inputs_done:
                manifest = self.find(ref)
                if manifest is not None:
                    ordered.setdefault(manifest.ref, manifest)
                continue
            if ref in seen:
                continue
            seen.add(ref)
            manifest = self.find(ref)
            if manifest is None:
                self.missing.append(ref)
                continue
            todo.append((ref, True))
            todo += [(one, False) for _, one in sorted(manifest.input_refs.items(), reverse=True)]
        return list(ordered.values())
