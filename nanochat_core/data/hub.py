"""Which files a published set of shards has, with their sizes and sha256, and where they are."""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from pydantic import BaseModel, TypeAdapter, ValidationError

from nanochat_core.data.fetching import (
    NO_HEADERS,
    FetchPolicy,
    open_remote,
    patiently,
    read_whole,
)
from nanochat_core.data.hub_address import SCHEME, HubAddress
from nanochat_core.data.recipes import FileDigest, HubSource
from nanochat_core.data.remote_bytes import Problem, Remote, shown_url
from nanochat_core.errors import ConfigError, DataError

SHARD_SUFFIX = ".parquet"
SUMS_FILES = ("SHA256SUMS", "sha256sums.txt")
MAX_PAGES = 10_000
_SUMS_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SPLIT = re.compile(r"(train|validation|valid|dev|test)-\d+-of-\d+\.parquet")
_COUNTED = re.compile(r"train-(\d+)-of-(\d+)\.parquet")
_HELD_OUT = ("validation", "valid", "dev", "test")
"""In the order in which one of them is taken for validation."""

Choose = Callable[[Sequence[str]], Sequence[str]]
"""Of the names of all files, in order, those that are wanted; names of folders end with /."""


@dataclass(frozen=True)
class _Listed:
    """A file as its publisher lists it; what is not told is None."""

    name: str
    sha256: str | None
    bytes: int | None


def hub_headers(token: str) -> Mapping[str, str]:
    """What shows a token to the hub; nothing for no token."""
    if not token:
        return NO_HEADERS
    if not token.isascii() or not token.isprintable() or " " in token:
        # The token itself is in no message.
        raise ConfigError(
            "the token for the hub holds characters that no token has (spaces, line ends or "
            "others beyond ASCII); expected one as https://huggingface.co/settings/tokens shows it"
        )
    return {"authorization": f"Bearer {token}"}


def list_shards(
    url: str,
    *,
    policy: FetchPolicy,
    headers: Mapping[str, str] = NO_HEADERS,
    num_train: int | None = None,
) -> list[FileDigest]:
    """The parquet files of a published set in order, with their sizes and sha256.

    `url` is hf://datasets/OWNER/NAME[@REVISION][/FOLDER], where the hub tells both, or a folder
    or URL (http, https, s3, file or others of fsspec) with a file SHA256SUMS as sha256sum writes
    it; the files of a local folder without one are read. With `num_train` these are only the
    first so many and the last one of the set: sizes at a URL are asked one by one.

    Raises DataError for a set that cannot be listed, holds no shards, or has no digests.
    """

    def choose(names: Sequence[str]) -> Sequence[str]:
        shards = _of_training([name for name in names if name.endswith(SHARD_SUFFIX)])
        if not shards:
            raise DataError(
                f"{shown_url(url)} has no {SHARD_SUFFIX} files ({_some(names)}); give the folder "
                "that has the shards"
            )
        if num_train is None or num_train + 1 >= len(shards):
            return shards
        return [*shards[:num_train], shards[-1]]

    return list_files(url, choose, policy=policy, headers=headers)


def list_files(
    url: str, choose: Choose, *, policy: FetchPolicy, headers: Mapping[str, str] = NO_HEADERS
) -> list[FileDigest]:
    """As `list_shards`, for the files of a folder that `choose` takes of their names."""
    with open_remote(policy, headers) as remote:
        listed = {file.name: file for file in _listed(remote, url, policy)}
        chosen = choose(sorted(listed, key=_natural))
        complete = partial(_complete, remote, url, policy)
        with ThreadPoolExecutor(policy.parallel) as pool:
            return list(pool.map(complete, [listed[name] for name in chosen]))


def shard_urls(url: str, mirrors: Sequence[str], file: FileDigest) -> list[str]:
    """Where a file of the set `url` may be had: there, then at the mirrors in order."""
    return [_inside(folder, file.name) for folder in (url, *mirrors)]


def choose_shards(found: Sequence[FileDigest], num_train: int | None) -> HubSource:
    """The first `num_train` shards by name (None: all), and the last one for validation.

    Raises DataError when the set has fewer.
    """
    in_order = sorted(found, key=lambda file: _shard_order(file.name))
    available = len(in_order) - 1
    wanted = available if num_train is None else num_train
    if available < 1:
        raise DataError(
            f"the set has {len(in_order)} shards; expected two or more, the last for validation"
        )
    if not 1 <= wanted <= available:
        raise DataError(
            f"{wanted} train shards were asked of a set that has {available}, and one for "
            f"validation; ask for 1 to {available}, train on fewer tokens, or use a larger set"
        )
    return HubSource(files=(*in_order[:wanted], in_order[-1]))


def is_whole_set(names: Sequence[str]) -> bool:
    """Whether the names of some shards say that the set has no more: train in order, validation.

    True only where its publisher counts: the last train shard comes right before the one for
    validation (shard_6, shard_7), or is the last of its split (train-00003-of-00004).
    """
    *_, last, held_out = names
    split = _SPLIT.fullmatch(held_out)
    if split is not None and split[1] in _HELD_OUT and (counted := _COUNTED.fullmatch(last)):
        return int(counted[1]) + 1 == int(counted[2])
    before, after = _natural(last), _natural(held_out)
    steps = [b[0] - a[0] for a, b in zip(before, after, strict=False) if a != b]
    # Of two texts that differ the numbers are equal.
    return len(before) == len(after) and steps == [1]


def _of_training(names: Sequence[str]) -> list[str]:
    """Shards in order; of files named by their splits, those to train on and one held out.

    `datasets` names files so (train-00000-of-00004.parquet): a test split is no text to train on.
    """
    splits = {name: found[1] if (found := _SPLIT.fullmatch(name)) else "" for name in names}
    held_out = [name for split in _HELD_OUT for name in names if splits[name] == split]
    if "train" not in splits.values() or not held_out:
        return sorted(names, key=_natural)
    return [*sorted((name for name in names if splits[name] == "train"), key=_natural), held_out[0]]


def _shard_order(name: str) -> tuple[bool, list[tuple[int, str]]]:
    found = _SPLIT.fullmatch(name)
    return found is not None and found[1] in _HELD_OUT, _natural(name)


def _natural(name: str) -> list[tuple[int, str]]:
    """shard_2 before shard_10, as its publisher counts."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _some(names: Sequence[str], count: int = 5) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return f"it has {', '.join(names[:count])}{more}" if names else "it has no files"


def _inside(folder: str, name: str) -> str:
    if not folder.startswith(("http://", "https://")):
        return f"{folder.rstrip('/')}/{name}"
    parts = urlsplit(folder)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def _local_folder(url: str) -> Path | None:
    if "://" not in url:
        return Path(url).expanduser()
    return Path(url.removeprefix("file://")) if url.startswith("file://") else None


def _listed(remote: Remote, url: str, policy: FetchPolicy) -> Iterator[_Listed]:
    of_place = _of_hub if url.startswith(SCHEME) else _of_folder
    for file in of_place(remote, url, policy):
        # They become names of files on this machine; those of folders are only told.
        if "/" in file.name.removesuffix("/") or "\\" in file.name or file.name.startswith("."):
            continue
        yield file


class _Lfs(BaseModel):
    oid: str
    size: int


class _Entry(BaseModel):
    type: str
    path: str
    size: int = 0
    lfs: _Lfs | None = None


_ENTRIES = TypeAdapter(list[_Entry])


def _of_hub(remote: Remote, url: str, policy: FetchPolicy) -> Iterator[_Listed]:
    address = HubAddress.parse(url)
    page_url, seen = address.tree_url(remote.endpoint), set[str]()
    while page_url and page_url not in seen and len(seen) < MAX_PAGES:
        seen.add(page_url)
        body, following = _page(remote, url, page_url, policy)
        for entry in _entries(body, page_url):
            name = entry.path.removeprefix(f"{address.path}/" if address.path else "")
            if entry.type == "directory":
                yield _Listed(f"{name}/", None, None)
            if entry.type == "file":
                size = entry.lfs.size if entry.lfs else entry.size
                yield _Listed(name, entry.lfs.oid if entry.lfs else None, size)
        page_url = urljoin(page_url, following) if following else ""


def _page(remote: Remote, url: str, page_url: str, policy: FetchPolicy) -> tuple[bytes, str]:
    what = f"the list of files of {url}"
    try:
        return patiently(lambda: read_whole(remote, page_url), page_url, what, policy)
    except Problem as problem:
        raise DataError(
            f"{url} is not on the hub at {shown_url(remote.endpoint)} ({problem.reason}); check "
            "owner, name, revision and folder"
        ) from problem


def _entries(body: bytes, page_url: str) -> list[_Entry]:
    try:
        return _ENTRIES.validate_json(body)
    except ValidationError as error:
        raise DataError(
            f"{shown_url(page_url)} does not answer as a hub does ({error.errors()[0]['msg']}); "
            "check the endpoint of the hub"
        ) from error


def _of_folder(remote: Remote, url: str, policy: FetchPolicy) -> Iterator[_Listed]:
    folder = _local_folder(url)
    if folder is not None and not folder.is_dir():
        raise DataError(f"no such folder: {folder}; check where the shards are")
    for sums in SUMS_FILES:
        place = _inside(url if folder is None else str(folder), sums)
        try:
            body, _ = patiently(
                partial(read_whole, remote, place), place, f"{sums} of {shown_url(url)}", policy
            )
        except Problem:
            continue
        yield from _of_sums(body, shown_url(place))
        return
    if folder is None:
        raise DataError(
            f"{shown_url(url)} has no {' or '.join(SUMS_FILES)}, without which nothing that comes "
            "from there can be verified; put one there: sha256sum *.parquet > SHA256SUMS"
        )
    for path in sorted(folder.iterdir()):
        if path.is_file():
            yield _Listed(path.name, None, path.stat().st_size)


def _of_sums(body: bytes, place: str) -> Iterator[_Listed]:
    for number, line in enumerate(body.decode("utf-8", "replace").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        found = _SUMS_LINE.fullmatch(line.rstrip())
        if found is None:
            raise DataError(
                f"{place}:{number}: expected a sha256, two spaces and a file name, as sha256sum "
                f"writes them, not {line[:80]!r}"
            )
        yield _Listed(found[2].removeprefix("./"), found[1].lower(), None)


def _sha256_of(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}; check its rights") from error


def _complete(remote: Remote, url: str, policy: FetchPolicy, file: _Listed) -> FileDigest:
    """Size and sha256 of a listed file, asked for or worked out where the listing has none."""
    size, sha256 = file.bytes, file.sha256
    folder = _local_folder(url)
    place = _inside(url if folder is None else str(folder), file.name)
    if size is None:
        try:
            size = patiently(partial(remote.size, place), place, file.name, policy)
        except Problem as problem:
            raise DataError(
                f"{file.name} is in the list of {shown_url(url)}, but not there "
                f"({problem.reason}); whoever publishes it must set it right"
            ) from problem
    if sha256 is None and folder is not None:
        sha256 = _sha256_of(Path(place))
    if sha256 is None or not _SHA256.fullmatch(sha256):
        raise DataError(
            f"the hub tells no sha256 of {file.name} in {url}, so that it cannot be verified; use "
            "a set whose files are kept in LFS, or a folder with a SHA256SUMS"
        )
    return FileDigest(name=file.name, sha256=sha256, bytes=size)
