"""Station `shards`: text from installed documentation, own files or published shards."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from nanochat_core.artifacts.types import SHARD_STATION, Request
from nanochat_core.config.job import Role, StageOutput
from nanochat_core.data.fetching import fetch_all
from nanochat_core.data.hub import shard_urls
from nanochat_core.data.hub_shards import (
    HubAccess,
    ShardContents,
    examine,
    index_of,
    note_of,
    put_shard,
)
from nanochat_core.data.recipes import FileDigest, HubSource, MixtureSource, ShardsRecipe
from nanochat_core.data.shards import INDEX_FILE, QUESTIONS_FILE, build_shards
from nanochat_core.data.source_notes import SOURCES_FILE, save_notes
from nanochat_core.errors import DataError, StoreError
from tasks.stage import LOST_JOB_RETRIES, StageWork, stage

CODE_VERSION = 1
SHARD_CODE_VERSION = 1
FETCHED, PUBLISHED = "fetched", "published"


@stage("shards", code_version=CODE_VERSION, retries=LOST_JOB_RETRIES)
def shards(work: StageWork) -> StageOutput:
    """Collect documents, hold some out for validation, write them as parquet shards."""
    recipe = ShardsRecipe.model_validate(work.recipe)
    source = recipe.source
    if isinstance(source, HubSource):
        return _as_published(work, source)
    paths = work.source_paths
    output = build_shards(
        recipe,
        _paths_of_parts(work, source) if isinstance(source, MixtureSource) else paths,
        work.output,
        workers=work.execution.workers,
        progress=work.progress,
    )
    if isinstance(source, MixtureSource):
        return _with_addresses(output, source, paths)
    return output


def _with_addresses(
    output: StageOutput, source: MixtureSource, paths: Sequence[str]
) -> StageOutput:
    """With the place of each part's published shards ("" for other text): offline runs look here.

    Mirrors come after the places of the parts.
    """
    places = [
        place if isinstance(part.source, HubSource) else ""
        for part, place in zip(source.parts, paths, strict=False)
    ]
    return output.model_copy(update={"provenance": {**output.provenance, "addresses": places}})


def _as_published(work: StageWork, source: HubSource) -> StageOutput:
    """The shards as they are, and `shards.json`; nothing is cut out of them as questions."""
    found = Gathering(work, source, work.source_paths).into(work.output)
    index = index_of(source, found)
    (work.output / QUESTIONS_FILE).touch()
    text = json.dumps(index.model_dump(mode="json"), indent=1)
    (work.output / INDEX_FILE).write_text(text, encoding="utf-8")
    save_notes([note_of(source, found, work.output, _name_of(work))], work.output)
    names = (*index.train, index.validation, QUESTIONS_FILE, INDEX_FILE)
    files: dict[str, Role] = {**dict.fromkeys(names, "result"), SOURCES_FILE: "record"}
    return StageOutput(
        files=files,
        metrics={
            "documents": index.documents,
            "characters": index.characters,
            "questions": 0,
            "shards": len(source.files),
        },
        provenance={"addresses": list(work.source_paths)},
    )


def _name_of(work: StageWork) -> str:
    """What reports call the set: the last part of its address."""
    address = next(iter(work.source_paths), "")
    return PurePosixPath(address.rstrip("/")).name or "published shards"


def _paths_of_parts(work: StageWork, source: MixtureSource) -> dict[str, tuple[str, ...]]:
    """Name of a part -> where it is read; published shards are gathered in a folder first."""
    places = work.source_paths[: len(source.parts)]
    mirrors = work.source_paths[len(source.parts) :]
    paths: dict[str, tuple[str, ...]] = {}
    for number, (part, place) in enumerate(zip(source.parts, places, strict=True)):
        if isinstance(part.source, HubSource):
            folder = work.work / f"{PUBLISHED}-{number}"
            Gathering(work, part.source, (place, *mirrors), as_ours=False).into(folder)
            place = str(folder)
        paths[part.name] = (place,)
    return paths


class Gathering:
    """Published shards on their way: out of the store, or fetched, verified and published there.

    A shard is in the store as soon as it is verified: a kill costs those in flight at most, and
    another run, however many shards it takes, fetches only what nobody has fetched.
    """

    def __init__(
        self, work: StageWork, source: HubSource, addresses: Sequence[str], *, as_ours: bool = True
    ) -> None:
        self.work, self.source, self._as_ours = work, source, as_ours
        self.addresses = [address for address in addresses if address]
        self._store = work.call.run.store
        self._found: dict[str, ShardContents] = {}

    def into(self, folder: Path) -> dict[str, ShardContents]:
        """Fill `folder` with all shards; name -> what was found in it.

        They become shards as ours are, or (not `as_ours`) stay what they are, column and all.
        """
        folder.mkdir(parents=True, exist_ok=True)
        missing = [file for file in self.source.files if not self._taken(file, folder)]
        if missing:
            self._fetch(missing, folder)
        return self._found

    def _taken(self, file: FileDigest, folder: Path) -> bool:
        """Whether the shard came out of the store."""
        self.work.lease.check()
        ref = self._store.lookup(shard_request(file))
        if ref is None:
            return False
        metrics = self._store.manifest(ref).metrics
        contents = ShardContents.kept(metrics, self.source.text_column)
        self._put(self._store.materialize(ref) / file.name, file, folder, contents)
        return True

    def _fetch(self, missing: Sequence[FileDigest], folder: Path) -> None:
        near = self._in_other_artifacts()
        lost = [file.name for file in missing if file.sha256 not in near]
        if lost and not self.addresses:
            raise DataError(
                f"the run is offline, and the store lacks {len(lost)} of its shards, {lost[0]} "
                "first; run once online, or name a folder that has them as a mirror"
            )

        def done(path: Path, file: FileDigest) -> None:
            self.work.lease.check()
            contents = examine(path, self.source.text_column, file.name)
            self._publish(path, file, contents)
            self._put(path, file, folder, contents)
            path.unlink()

        # A worker's own: a token does not travel with what is asked of it.
        access = HubAccess.of(os.environ)  # noqa: TID251

        def places(file: FileDigest) -> list[str]:
            elsewhere = [shard_urls(address, (), file)[0] for address in self.addresses]
            return [*near.get(file.sha256, ()), *elsewhere]

        fetch_all(
            missing,
            places,
            self.work.work / FETCHED,
            access.policy,
            done=done,
            progress=self.work.progress,
            headers=access.headers,
        )

    def _in_other_artifacts(self) -> dict[str, list[str]]:
        """sha256 -> files of earlier runs' shards, where the store is a folder.

        Nothing names the artifact of a single shard, so collecting garbage may have removed it.
        """
        found: dict[str, list[str]] = {}
        for ref in [] if self._store.is_elsewhere else self._store.list(self.work.station):
            try:
                folder, manifest = self._store.materialize(ref), self._store.manifest(ref)
            except StoreError as error:
                self.work.report.log(logging.WARNING, str(error))
                continue
            for file in manifest.files:
                found.setdefault(file.sha256, []).append(str(folder / file.path))
        return found

    def _publish(self, path: Path, file: FileDigest, contents: ShardContents) -> None:
        output = StageOutput(
            files={file.name: "result"},
            metrics=contents.metrics(),
            provenance={"addresses": self.addresses},
        )
        run = self.work.call.run
        self._store.publish(shard_request(file), path.parent, output, provenance=run.provenance)

    def _put(
        self, shard: Path, file: FileDigest, folder: Path, contents: ShardContents | None
    ) -> None:
        contents = contents or examine(shard, self.source.text_column, file.name)
        self._found[file.name] = contents
        target = folder / file.name
        # A mixture's are gathered beside its work, which an earlier attempt may have begun.
        target.unlink(missing_ok=True)
        put_shard(shard, target, contents, as_ours=self._as_ours)


def shard_request(file: FileDigest) -> Request:
    """The artifact of one published shard: one file, asked for by its content."""
    recipe = file.model_dump(mode="json")
    return Request(station=SHARD_STATION, code_version=SHARD_CODE_VERSION, recipe=recipe)
