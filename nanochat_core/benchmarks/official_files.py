"""Official data from the hub, in a folder, under the names that the stations look for."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field

from nanochat_core.benchmarks.files import read_rows
from nanochat_core.benchmarks.open import ROW_TYPES
from nanochat_core.config.base import Config
from nanochat_core.data.fetching import NO_HEADERS, FetchPolicy, fetch_all, open_remote, patiently
from nanochat_core.data.hub import list_files, shard_urls
from nanochat_core.data.hub_address import MAIN
from nanochat_core.data.part_file import holds
from nanochat_core.data.recipes import FileDigest
from nanochat_core.data.remote_bytes import Problem, Remote
from nanochat_core.errors import ConfigError, DataError, UnknownNameError
from nanochat_core.logs import Progress

CORE = "core"
CORE_FILE = "eval_bundle.zip"
CORE_URL = "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip"
RECORD_FILE = "fetched.json"
SCRATCH = ".fetching"

Counted = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
"""Shows how far something of so many bytes is; what it gives is told of each further one."""


@dataclass(frozen=True)
class OfficialFile:
    """A file that stations look for, and of which files on the hub it is made."""

    name: str
    repo: str
    folder: str
    split: str

    def url(self, revision: str) -> str:
        """Of the folder that has its parts."""
        return f"hf://datasets/{self.repo}@{revision.replace('/', '%2F')}/{self.folder}"

    def parts_among(self, names: Sequence[str]) -> list[str]:
        """Those of the files in its folder that it is made of; DataError for none."""
        parts = [name for name in names if name.startswith(f"{self.split}-")]
        parts = [name for name in parts if name.endswith(".parquet")]
        if not parts:
            raise DataError(
                f"{self.repo} has no {self.split}-*.parquet in {self.folder}, of which {self.name} "
                f"is made (it has {', '.join(names) or 'no files'}); give the --revision that has"
            )
        return parts


def _both(name: str, repo: str, folder: str, train: str = "train") -> tuple[OfficialFile, ...]:
    return (
        OfficialFile(f"{name}-train.parquet", repo, folder, train),
        OfficialFile(f"{name}-test.parquet", repo, folder, "test"),
    )


# RECIPE section 6 names the repositories; their folders are those of the hub's parquet layout.
OFFICIAL: Mapping[str, tuple[OfficialFile, ...]] = {
    "smoltalk": _both("smoltalk", "HuggingFaceTB/smol-smoltalk", "data"),
    "mmlu": _both("mmlu", "cais/mmlu", "all", "auxiliary_train"),
    "gsm8k": _both("gsm8k", "openai/gsm8k", "main"),
    "arc-easy": _both("arc-easy", "allenai/ai2_arc", "ARC-Easy"),
    "arc-challenge": _both("arc-challenge", "allenai/ai2_arc", "ARC-Challenge"),
    "humaneval": (
        OfficialFile(
            "humaneval-test.parquet", "openai/openai_humaneval", "openai_humaneval", "test"
        ),
    ),
}
NAMES = (*OFFICIAL, CORE)


class Fetched(Config):
    """A file in the folder: of what it was made, and what it is."""

    file: FileDigest
    source: str
    parts: tuple[FileDigest, ...] = ()


class _Record(Config):
    files: dict[str, Fetched] = Field(default_factory=dict)


class Folder:
    """A folder of official files, with a record of where each is from."""

    def __init__(
        self,
        path: Path,
        policy: FetchPolicy,
        headers: Mapping[str, str] = NO_HEADERS,
        *,
        counted: Counted,
    ) -> None:
        self.path, self.policy, self.headers, self._counted = path, policy, headers, counted

    def bring(self, file: OfficialFile, revision: str = MAIN) -> tuple[Fetched, bool]:
        """Have `file` in the folder, and whether it was there already.

        Its parts are verified by the hub's sha256, joined, and their rows checked before it
        appears. Raises DataError where that fails.
        """
        url = file.url(revision)
        parts = tuple(list_files(url, file.parts_among, policy=self.policy, headers=self.headers))
        known = self._known(file.name)
        if known is not None and known.parts == parts:
            return known, True
        scratch = self.path / SCRATCH / file.name
        self._fetch_parts(url, parts, scratch, file.name)
        joined = scratch / file.name
        join_parts([scratch / part.name for part in parts], joined)
        row_type = ROW_TYPES.get(file.name.rsplit("-", 1)[0])  # type: ignore[call-overload]
        if row_type is not None:
            read_rows(joined, row_type)
        return self._keep(joined, Fetched(file=_digest(joined), source=url, parts=parts)), False

    def bring_core(self, url: str = CORE_URL, sha256: str = "") -> tuple[Fetched, bool]:
        """Have the zip of the CORE tasks in the folder, and whether it was there already.

        Nobody publishes its digest: without `sha256` the first one that arrives whole is recorded.
        """
        known = self._known(CORE_FILE)
        if known is not None and sha256 in ("", known.file.sha256):
            return known, True
        scratch = self.path / SCRATCH / CORE_FILE
        scratch.mkdir(parents=True, exist_ok=True)
        archive = scratch / CORE_FILE
        with open_remote(self.policy) as remote:
            take = partial(self._take_archive, remote, url, archive)
            try:
                found = patiently(take, url, CORE_FILE, self.policy)
            except Problem as problem:
                raise DataError(f"{CORE_FILE} is not at {url} ({problem.reason})") from problem
        if sha256 and found.sha256 != sha256.lower():
            raise DataError(
                f"{url} has sha256 {found.sha256}, expected {sha256} (--sha256); it was not kept"
            )
        _check_archive(archive, url)
        return self._keep(archive, Fetched(file=found, source=url)), False

    def _take_archive(self, remote: Remote, url: str, archive: Path) -> FileDigest:
        with (
            remote.open(url) as stream,
            archive.open("wb") as file,
            self._counted(CORE_FILE, stream.total or 0) as advance,
        ):
            for chunk in stream.chunks:
                file.write(chunk)
                advance(len(chunk))
            size = file.tell()
        if stream.total not in (None, size):
            raise Problem("busy", f"the connection ended after {size:,} of {stream.total:,} bytes")
        return _digest(archive)

    def _fetch_parts(self, url: str, parts: Sequence[FileDigest], scratch: Path, name: str) -> None:
        with self._counted(name, sum(part.bytes for part in parts)) as advance:
            fetch_all(
                *(parts, lambda part: shard_urls(url, (), part), scratch, self.policy),
                done=lambda _path, _part: None,
                progress=_Advancing(advance),
                headers=self.headers,
            )

    def _known(self, name: str) -> Fetched | None:
        found = self._record().files.get(name)
        return found if found is not None and holds(self.path / name, found.file) else None

    def _record(self) -> _Record:
        try:
            return _Record.model_validate_json((self.path / RECORD_FILE).read_bytes())
        except (FileNotFoundError, ValueError):
            # Without it files are fetched again, which is all that it saves.
            return _Record()

    def _keep(self, made: Path, fetched: Fetched) -> Fetched:
        os.replace(made, self.path / fetched.file.name)
        record = _Record(files={**self._record().files, fetched.file.name: fetched})
        temporary = made.with_name(RECORD_FILE)
        temporary.write_text(json.dumps(record.model_dump(mode="json"), indent=1) + "\n")
        os.replace(temporary, self.path / RECORD_FILE)
        shutil.rmtree(made.parent)
        with suppress(OSError):  # another command may be fetching other files
            (self.path / SCRATCH).rmdir()
        return fetched


class _Advancing(Progress):
    """Tells the difference since the last time."""

    def __init__(self, advance: Callable[[int], None]) -> None:
        super().__init__(None, 0, "bytes")
        self._advance, self._told = advance, 0

    def update(self, done: int, message: str = "") -> None:
        del message
        self._advance(done - self._told)
        self._told = done


def check_names(names: Sequence[str], revision: str, sha256: str) -> None:
    """Refuse (ConfigError) names of nothing, and options that fit none or several of them."""
    for name in names:
        if name not in NAMES:
            raise UnknownNameError(f"there is no official data {name!r}; there is {_and(NAMES)}")
    if revision and (len(names) != 1 or names[0] == CORE):
        raise ConfigError(f"--revision is of one set on the hub; given with {_and(names)}")
    if sha256 and CORE not in names:
        raise ConfigError(f"--sha256 is of {CORE_FILE}: name core, not only {_and(names)}")


def _and(names: Sequence[str]) -> str:
    return ", ".join(names) or "no name"


def join_parts(parts: Sequence[Path], target: Path) -> None:
    """One parquet file with the rows of several, in order; a single one stays as it is."""
    if len(parts) == 1:
        os.replace(parts[0], target)
        return
    try:
        with pq.ParquetFile(parts[0]) as first:
            schema = first.schema_arrow
        with pq.ParquetWriter(target, schema, compression="zstd") as writer:
            for part in parts:
                with pq.ParquetFile(part) as file:
                    for group in range(file.num_row_groups):
                        writer.write_table(file.read_row_group(group))
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"the parts of {target.name} do not go together: {error}; tell those who publish them"
        ) from error


def _check_archive(archive: Path, url: str) -> None:
    try:
        with zipfile.ZipFile(archive) as bundle:
            damaged = bundle.testzip()
    except zipfile.BadZipFile as error:
        raise DataError(f"{url} is no zip file ({error}); it was not kept") from error
    if damaged is not None:
        raise DataError(f"{url}: {damaged} in it is damaged; it was not kept: fetch it again")


def _digest(path: Path) -> FileDigest:
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return FileDigest(name=path.name, sha256=sha256, bytes=path.stat().st_size)
