"""An S3 bucket as a store: every request rides out outages, every byte is checked on both ways.

s3fs gives the connection, the credentials of the environment and a loop for its requests; the
requests are made here, one by one, so that each can be tried again alone.
"""

import base64
import errno
import hashlib
import logging
import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from uuid import uuid4

import fsspec

from nanochat_core.artifacts import s3_errors
from nanochat_core.artifacts.filesystems import CHUNK_BYTES, FileInfo, Files, hash_file
from nanochat_core.artifacts.outages import Outages, reason_of
from nanochat_core.artifacts.threads import in_threads, is_patience_over, without_patience
from nanochat_core.errors import StoreUnavailableError

log = logging.getLogger(__name__)

PART_BYTES = 8 * 2**20
"""Of uploads and downloads in parts: what is sent again when a connection breaks."""

MAX_PARTS = 9_000
"""S3 takes 10,000; some room for a file that grows while it is sent."""

PARTS_AT_ONCE = 4
_RESTARTS = 3
_LIST_NAMES = 1000

# All tries are ours (`Outages`), so that a conditional write knows when it was sent twice.
_ONE_TRY = {"mode": "standard", "total_max_attempts": 1}

Result = TypeVar("Result")


class S3Files(Files):
    """Files of an S3 bucket, below a prefix."""

    num_threads = 8

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.bucket, _, self.prefix = url.split("://", 1)[1].strip("/").partition("/")
        self._outages = Outages(url, s3_errors.is_outage)

    def _make(self) -> tuple[Any, str]:
        """The one place where a connection is made: credentials come from the environment only."""
        filesystem = fsspec.filesystem(
            "s3",
            use_listings_cache=False,
            skip_instance_cache=True,
            config_kwargs={
                "retries": _ONE_TRY,
                "connect_timeout": 5,
                "read_timeout": 30,
                "max_pool_connections": 2 * self.num_threads * PARTS_AT_ONCE,
            },
        )
        filesystem.retries = 1
        return filesystem, f"{self.bucket}/{self.prefix}"

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}".strip("/")

    def _ride(self, action: Callable[[], Result]) -> Result:
        try:
            return self._outages.ride(action)
        except Exception as error:
            clearer = s3_errors.clearer(error, self.url)
            if clearer is None:
                raise
            raise clearer from error

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one request."""

        def once() -> dict[str, Any]:
            answer = self._open()[0].call_s3(method, Bucket=self.bucket, **arguments)
            return dict(answer)

        return self._ride(once)

    def _get(self, path: str, **arguments: Any) -> bytes:
        def once() -> bytes:
            filesystem = self._open()[0]
            place = {"Bucket": self.bucket, "Key": self._key(path)}
            data: bytes = fsspec.asyn.sync(filesystem.loop, _body, filesystem, **place, **arguments)
            return data

        return self._ride(once)

    def read(self, path: str) -> bytes:
        """As in `Files`."""
        return self._get(path)

    def _read_part(self, path: str, info: FileInfo, start: int) -> bytes:
        end = min(start + PART_BYTES, info.size)
        arguments = {"Range": f"bytes={start}-{end - 1}"}
        if info.version:
            arguments["IfMatch"] = f'"{info.version}"'
        try:
            return self._get_if_sound(path, arguments)
        except OSError as error:
            if not s3_errors.is_lost_race(error):
                raise
            raise FileNotFoundError(
                errno.ENOENT, "it was replaced while it was read", path
            ) from error

    def _get_if_sound(self, path: str, arguments: dict[str, str]) -> bytes:
        try:
            return self._get(path, **arguments)
        except StoreUnavailableError:
            if is_patience_over():
                raise
        with without_patience():
            self.info(path)
            try:
                # The outage may just have ended, and then nothing is wrong with the file.
                return self._get(path, **arguments)
            except StoreUnavailableError as error:
                # So do servers whose disk has changed a bit: the rest of the store works.
                reason = reason_of(error.__cause__)
                raise OSError(
                    errno.EIO, f"the store lists it but does not send it: {reason}"
                ) from error

    def create(self, path: str, data: bytes) -> bool:
        """As in `Files`; a write whose answer was lost knows itself when it is sent again."""
        return self._put_if(path, data, IfNoneMatch="*") is not None

    def replace_if(self, path: str, data: bytes, version: str) -> str | None:
        """As in `Files`, and nobody comes between; content that stays equal keeps its version."""
        return self._put_if(path, data, IfMatch=f'"{version}"')

    def _put_if(self, path: str, data: bytes, **condition: str) -> str | None:
        """The new version, None when the condition did not hold.

        The HTTP client, too, may send a write twice. So each carries a name, and one that is
        refused looks whether it is already there.
        """
        writer = uuid4().hex
        try:
            return self._put(path, data, Metadata={"writer": writer}, **condition)
        except FileNotFoundError:
            return None
        except OSError as error:
            if not s3_errors.is_lost_race(error):
                raise
        return self._version_by(writer, path)

    def _version_by(self, writer: str, path: str) -> str | None:
        """The version of `path` if it was that writer's."""
        try:
            found = self._call("head_object", Key=self._key(path))
        except FileNotFoundError:
            return None
        return _version(found) if found.get("Metadata", {}).get("writer") == writer else None

    def _put(self, path: str, data: bytes, **arguments: Any) -> str | None:
        found = self._call(
            "put_object", Key=self._key(path), Body=data, ContentMD5=_md5(data), **arguments
        )
        return _version(found)

    def write(self, path: str, data: bytes) -> None:
        """As in `Files`."""
        self._put(path, data)

    def put(self, source: Path, path: str, *, share: bool) -> str:
        """As in `Files`; what is hashed is what is sent, whether or not the file grows."""
        del share
        for _ in range(_RESTARTS):
            with source.open("rb") as file:
                part_bytes = _part_bytes(os.fstat(file.fileno()).st_size)
                first = file.read(part_bytes)
                if len(first) < part_bytes:
                    self._put(path, first)
                    return hashlib.sha256(first).hexdigest()
                sha256 = self._put_in_parts(file, first, path)
                if sha256 is not None:
                    return sha256
                log.warning("the upload of %s was lost by the store; sending it again", path)
        raise OSError(errno.EREMOTEIO, f"the store lost its upload {_RESTARTS} times", path)

    def _put_in_parts(self, file: BinaryIO, first: bytes, path: str) -> str | None:
        """The sha256 of what was sent, None when the server has forgotten the upload."""
        key, writer = self._key(path), uuid4().hex
        started = self._call("create_multipart_upload", Key=key, Metadata={"writer": writer})
        upload = {"Key": key, "UploadId": started["UploadId"]}
        try:
            sha256, num_bytes, parts = self._send_parts(file, first, upload)
            self._call("complete_multipart_upload", MultipartUpload={"Parts": parts}, **upload)
        except FileNotFoundError:
            # Gone after the answer to its completion was lost, or with a server.
            if self._version_by(writer, path) is None:
                return None
        except BaseException:
            self._abort(upload)
            raise
        stored = self.info(path).size
        if stored != num_bytes:
            raise OSError(errno.EREMOTEIO, f"{stored:,} bytes stored of {num_bytes:,}", path)
        return sha256

    def _send_parts(
        self, file: BinaryIO, first: bytes, upload: dict[str, str]
    ) -> tuple[str, int, list[dict[str, Any]]]:
        """sha256, bytes and the list of what was sent; hashed while it is on its way."""
        digest, num_bytes, parts = hashlib.sha256(), 0, list[dict[str, Any]]()
        for batch in _batches(file, first):
            work: list[Callable[[], dict[str, Any] | None]] = [
                partial(self._send_part, upload, number, data)
                for number, data in enumerate(batch, start=len(parts) + 1)
            ]
            work.append(partial(_hash_all, digest, batch))
            sent = in_threads(lambda step: step(), work, len(work))
            parts += filter(None, sent)
            num_bytes += sum(map(len, batch))
        return digest.hexdigest(), num_bytes, parts

    def _send_part(self, upload: dict[str, str], number: int, data: bytes) -> dict[str, Any]:
        sent = self._call(
            "upload_part", PartNumber=number, Body=data, ContentMD5=_md5(data), **upload
        )
        return {"PartNumber": number, "ETag": sent["ETag"]}

    def _abort(self, upload: dict[str, str]) -> None:
        """Failing to is harmless: `sweep_uploads` will find it."""
        try:
            with without_patience():
                self._call("abort_multipart_upload", **upload)
        except Exception as error:  # noqa: BLE001  the first error is the one to tell
            log.debug("the upload of %s stays for now: %s", upload["Key"], error)

    def sha256(self, path: str, info: FileInfo | None = None) -> str:
        """As in `Files`."""
        info = info or self.info(path)
        digest = hashlib.sha256()
        starts = range(0, info.size, PART_BYTES)
        for i in range(0, len(starts), PARTS_AT_ONCE):
            read = partial(self._read_part, path, info)
            for data in in_threads(read, starts[i : i + PARTS_AT_ONCE], PARTS_AT_ONCE):
                digest.update(data)
        return digest.hexdigest()

    def fetch(self, path: str, target: Path, info: FileInfo | None = None) -> str:
        """As in `Files`, in parts."""
        info = info or self.info(path)
        with target.open("wb") as file:
            file.truncate(info.size)
        in_threads(
            partial(self._fetch_part, path, target, info),
            range(0, info.size, PART_BYTES),
            PARTS_AT_ONCE,
        )
        return hash_file(target)

    def _fetch_part(self, path: str, target: Path, info: FileInfo, start: int) -> None:
        data = self._read_part(path, info, start)
        with target.open("r+b") as file:
            file.seek(start)
            file.write(data)

    def info(self, path: str) -> FileInfo:
        """As in `Files`."""
        try:
            found = self._call("head_object", Key=self._key(path))
        except FileNotFoundError:
            # The answer to HEAD has no body, so it cannot say that the bucket is what is missing.
            self._call("list_objects_v2", Prefix=self._key(path), MaxKeys=1)
            raise
        return FileInfo(int(found["ContentLength"]), _version(found))

    def infos(self, folder: str) -> dict[str, FileInfo]:
        """As in `Files`: one request for a thousand files."""
        start = len(self._below(folder))
        return {
            found["Key"][start:]: FileInfo(
                int(found["Size"]), _version(found), found["LastModified"].timestamp()
            )
            for page in self._pages(folder)
            for found in page.get("Contents", [])
            if not found["Key"].endswith("/")
        }

    def names(self, folder: str) -> tuple[str, ...]:
        """As in `Files`."""
        start, found = len(self._below(folder)), set[str]()
        for page in self._pages(folder, Delimiter="/"):
            found.update(entry["Key"][start:] for entry in page.get("Contents", []))
            found.update(entry["Prefix"][start:-1] for entry in page.get("CommonPrefixes", []))
        return tuple(sorted(found - {""}))

    def _below(self, folder: str) -> str:
        key = self._key(folder)
        return f"{key}/" if key else ""

    def _pages(self, folder: str, **arguments: Any) -> Iterator[dict[str, Any]]:
        arguments |= {"Prefix": self._below(folder), "MaxKeys": _LIST_NAMES}
        while True:
            page = self._call("list_objects_v2", **arguments)
            yield page
            if not page.get("IsTruncated"):
                return
            arguments["ContinuationToken"] = page["NextContinuationToken"]

    def remove(self, path: str) -> None:
        """As in `Files`; one request a file, as not every server can remove many at once."""
        keys = [entry["Key"] for page in self._pages(path) for entry in page.get("Contents", [])]
        in_threads(
            lambda key: self._call("delete_object", Key=key),
            [*keys, self._key(path)],
            self.num_threads,
        )

    def sweep_uploads(self, older_than_seconds: float = 24 * 3600) -> int:
        """As in `Files`."""
        limit = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
        old = [upload for upload in self._uploads() if upload["Initiated"] <= limit]
        for upload in old:
            log.info("giving up the upload of %s from %s", upload["Key"], upload["Initiated"])
            self._abort({"Key": upload["Key"], "UploadId": upload["UploadId"]})
        return len(old)

    def _uploads(self) -> Iterator[dict[str, Any]]:
        arguments = {"Prefix": self._below("")}
        while True:
            page = self._call("list_multipart_uploads", **arguments)
            yield from page.get("Uploads", [])
            if not page.get("IsTruncated"):
                return
            arguments["KeyMarker"] = page["NextKeyMarker"]
            arguments["UploadIdMarker"] = page.get("NextUploadIdMarker", "")

    def _keeps_others(self, probe: str, old_version: str | None) -> bool:
        return self.replace_if(probe, b"fourth", str(old_version)) is None


async def _body(filesystem: Any, **arguments: Any) -> bytes:
    answer = await filesystem._call_s3("get_object", **arguments)
    async with answer["Body"] as body:
        data: bytes = await body.read()
    return data


def _version(found: dict[str, Any]) -> str | None:
    return str(found.get("ETag", "")).strip('"') or None


def _md5(data: bytes) -> str:
    """By which the server refuses bytes that were changed on the way."""
    return base64.b64encode(hashlib.md5(data, usedforsecurity=False).digest()).decode("ascii")


def _hash_all(digest: Any, batch: list[bytes]) -> None:
    for data in batch:
        digest.update(data)


def _part_bytes(file_bytes: int) -> int:
    smallest = -(-file_bytes // MAX_PARTS)
    return max(PART_BYTES, -(-smallest // CHUNK_BYTES) * CHUNK_BYTES)


def _batches(file: BinaryIO, first: bytes) -> Iterator[list[bytes]]:
    """The parts of a file, a few at a time; all but the last as long as the first."""
    batch = [first]
    while data := file.read(len(first)):
        if len(batch) == PARTS_AT_ONCE:
            yield batch
            batch = []
        batch.append(data)
    yield batch
