"""Make the bucket of NANOCHAT_STORE where there is none, and try what the store can do.

    python bucket.py

The one job that starts before everything that uses the store: keys that are wrong, or a store that
cannot be written, are said here once and not by every run.
"""

import os
import sys
import time

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.logs import configure_logging

PROTOCOL = "s3://"
TRIES = 30
"""Two seconds apart: a server that has just started refuses some requests."""


def bucket_of(url: str) -> str:
    """The bucket of a store's URL; ConfigError for a store that is in none."""
    bucket = url.removeprefix(PROTOCOL).split("/", 1)[0]
    if not url.startswith(PROTOCOL) or not bucket:
        raise ConfigError(
            f"NANOCHAT_STORE={url!r} is in no bucket; containers share nothing else, so give "
            "s3://bucket/prefix"
        )
    return bucket


def make_bucket(bucket: str) -> bool:
    """Make it; False when it was there. Raises OSError when the store refuses."""
    import s3fs

    files = s3fs.S3FileSystem(use_listings_cache=False)
    # Not exists(), which calls a bucket that it may not look into absent.
    try:
        files.call_s3("head_bucket", Bucket=bucket)
    except FileNotFoundError:
        files.mkdir(bucket)
        return True
    return False


def made_in_time(bucket: str) -> bool:
    """As `make_bucket`, tried again while the server starts."""
    for left in reversed(range(TRIES)):
        try:
            return make_bucket(bucket)
        except PermissionError:
            raise
        except OSError as error:
            if not left:
                raise
            sys.stderr.write(f"the store is not ready ({error}), trying again\n")
            time.sleep(2)
    raise AssertionError("the last try returns or raises")


def main() -> int:
    """Entry point."""
    configure_logging()
    url = os.environ.get("NANOCHAT_STORE", "")  # noqa: TID251  an entry
    try:
        bucket = bucket_of(url)
        made = made_in_time(bucket)
        ArtifactStore(url).check_writable()
    except (OSError, NanochatError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write(f"the bucket {bucket} {'is made' if made else 'was there'}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
