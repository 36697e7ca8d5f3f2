"""Where a store is: its URL, its default, and the right adapter for it."""

import os
from collections.abc import Mapping
from pathlib import Path

import fsspec

from nanochat_core.artifacts.filesystems import Files, MemoryFiles
from nanochat_core.artifacts.local_files import LocalFiles
from nanochat_core.artifacts.s3_files import S3Files
from nanochat_core.errors import ConfigError

_APPLICATION = "nanochat-flows"


def user_cache_folder() -> Path:
    """A folder of this user on this machine for what can be made again; it may not exist yet."""
    if os.name == "nt":
        return Path.home() / "AppData" / "Local" / _APPLICATION
    return Path.home() / ".cache" / _APPLICATION


def default_store_url(environ: Mapping[str, str]) -> str:
    """NANOCHAT_STORE, else NANOCHAT_BASE_DIR, else a per-user cache folder.

    `environ` is the environment as the entry point read it.
    """
    for name in ("NANOCHAT_STORE", "NANOCHAT_BASE_DIR"):
        if environ.get(name):
            return environ[name]
    return str(user_cache_folder() / "store")


def open_files(url: str) -> Files:
    """The files of a store URL: a path, `memory://…`, `s3://…` or another fsspec protocol."""
    protocol = _protocol(url)
    if protocol in ("file", "local"):
        expanded = url.split("://", 1)[-1] if "://" in url else url
        return LocalFiles(os.path.abspath(os.path.expanduser(expanded)))
    kinds: dict[str, type[Files]] = {"memory": MemoryFiles, "s3": S3Files, "s3a": S3Files}
    return kinds.get(protocol, Files)(url)


def _protocol(url: str) -> str:
    if not url.strip() or "::" in url:
        raise ConfigError(
            f"store URL {url!r} names no place; use a folder, memory://name or s3://bucket/prefix."
        )
    before, colon, after = url.partition(":")
    if colon and not after.startswith("//") and before in fsspec.available_protocols():
        raise ConfigError(
            f"store URL {url!r} lacks a slash; write {before}://{after.lstrip('/')}, or ./{url} "
            "for a folder of that name."
        )
    protocol: str = fsspec.utils.get_protocol(url)
    if protocol not in fsspec.available_protocols():
        raise ConfigError(
            f"store URL {url!r} has the unknown protocol {protocol!r}; "
            "use a folder, memory://name or s3://bucket/prefix."
        )
    if protocol not in ("file", "local", "memory") and not url.split("://", 1)[-1].strip("/"):
        raise ConfigError(
            f"store URL {url!r} names no bucket; write it as {protocol}://bucket/prefix."
        )
    if "@" in url.split("://", 1)[-1].split("/", 1)[0] and "://" in url:
        raise ConfigError(
            "the store URL holds a user name or key, which would be recorded with every run; "
            "give credentials in the environment (AWS_ACCESS_KEY_ID and others) instead."
        )
    return protocol
