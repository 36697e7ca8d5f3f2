"""A process on a host of its own that takes a lease, says so, and asks it when told to.

python lease_holder.py URL CACHE_FOLDER TTL [WORK_FOLDER]
"""

import sys
from pathlib import Path

from store_tools import OUTPUT, make_request

from nanochat_core.artifacts.store import ArtifactStore
from nanochat_core.errors import LeaseLostError


def say(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(url: str, cache: str, ttl: str, folder: str = "") -> None:
    store = ArtifactStore(url, cache_folder=Path(cache), lease_seconds=float(ttl))
    request = make_request()
    with store.lock(request.station, request.fingerprint, wait=True) as lease:
        say("held")
        sys.stdin.readline()
        try:
            lease.confirm()
            say("kept")
        except LeaseLostError as error:
            say(f"lost: {error}")
        if folder:
            sys.stdin.readline()
            say(store.publish(request, Path(folder), OUTPUT).manifest)


if __name__ == "__main__":
    main(*sys.argv[1:])
