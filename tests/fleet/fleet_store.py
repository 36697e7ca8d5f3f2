"""What a fleet leaves in its bucket, as yet another machine sees it, and the same made locally."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fleet_tools import Member
from s3_server import S3Server

from flows.presets import STATIONS
from nanochat_core.artifacts.store import ArtifactStore

_CHECKPOINT = re.compile(r"inprogress/(?P<station>\w+)/.*/step-(?P<step>\d+)[^/]*/manifest\.json$")


@dataclass(frozen=True)
class SavedStep:
    """A whole checkpoint of a station in progress, in the bucket."""

    station: str
    step: int
    at: float
    """When its manifest was written, seconds since the epoch."""


def saved_steps(server: S3Server, url: str, station: str = "pretrain") -> list[SavedStep]:
    """Checkpoints below `inprogress/` of a store, oldest first; only those with a manifest."""
    bucket, prefix = _place(url)
    pages = server.client().get_paginator("list_objects_v2")
    found = []
    for page in pages.paginate(Bucket=bucket, Prefix=f"{prefix}/inprogress/"):
        for item in page.get("Contents", ()):
            match = _CHECKPOINT.search(item["Key"])
            if match and match["station"] == station:
                at = item["LastModified"].timestamp()
                found.append(SavedStep(station, int(match["step"]), at))
    return sorted(found, key=lambda saved: saved.step)


def newest_step(server: S3Server, url: str, station: str = "pretrain") -> int:
    """The step of the newest checkpoint in the bucket; 0 when there is none."""
    return max((saved.step for saved in saved_steps(server, url, station)), default=0)


def copy_store(server: S3Server, source: str, target: str, stations: tuple[str, ...]) -> None:
    """Copy whole stations from one store to another, inside of the server."""
    client = server.client()
    (bucket, prefix), (to_bucket, to_prefix) = _place(source), _place(target)
    for station in stations:
        pages = client.get_paginator("list_objects_v2")
        for page in pages.paginate(Bucket=bucket, Prefix=f"{prefix}/{station}/"):
            for item in page["Contents"]:
                name = item["Key"].removeprefix(prefix)
                place = {"Bucket": bucket, "Key": item["Key"]}
                client.copy_object(Bucket=to_bucket, Key=to_prefix + name, CopySource=place)


def _place(url: str) -> tuple[str, str]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    return bucket, prefix


@contextmanager
def looking_into(server: S3Server, url: str, cache: Path) -> Iterator[ArtifactStore]:
    """A store of that server in this process, as another machine would see it."""
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    try:
        yield ArtifactStore(url, cache_folder=cache)
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def digests(store: ArtifactStore) -> dict[str, str]:
    """Station -> digest of its newest artifact."""
    return {ref.station: ref.digest for ref in store.list() if ref.station in STATIONS}


def last_record(store: ArtifactStore) -> dict[str, Any]:
    """The record of the newest run."""
    records = store.runs()
    assert records, f"no run record in {store.url}"
    return records[max(records)]


def station_states(record: Mapping[str, Any]) -> dict[str, str]:
    """Station -> made, resumed, cached, … in one run."""
    return {name: station["state"] for name, station in record["stations"].items()}


class LocalRun:
    """`nanochat run` on one machine in a folder: what a fleet must come to, too."""

    def __init__(
        self, folder: Path, preset: str, overrides: Mapping[str, Any], *, stop_after: str = "end"
    ) -> None:
        folder.mkdir(parents=True)
        self.store = ArtifactStore(str(folder / "store"))
        self._member = Member("local", folder, {})
        settings = [f"{name}={value}" for name, value in overrides.items()]
        self._options = ["--store", self.store.url, "--stop-after", stop_after]
        self._options += [word for setting in settings for word in ("--set", setting)]
        self._preset = preset

    def __enter__(self) -> "LocalRun":
        """It runs beside whatever else is going on."""
        self._member.launch("flows.cli", "run", self._preset, *self._options)
        return self

    def __exit__(self, *_: object) -> None:
        self._member.remove()

    def digests(self, seconds: float = 900) -> dict[str, str]:
        """Station -> digest, once it has ended well."""
        assert self._member.process is not None
        code = self._member.process.wait(seconds)
        assert code == 0, self._member.log
        return digests(self.store)
