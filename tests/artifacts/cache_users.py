"""Processes that share a cache too small for them, round after round.

Arguments: store URL, folder of the cache. In each round every copy counts as unused for two days;
then all processes fetch at once and read what they were given. Prints how many copies were removed.
"""

import multiprocessing
import os
import random
import sys
import time
from collections.abc import Sequence
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Barrier
from pathlib import Path

from nanochat_core.artifacts.copies import KEEP_SECONDS, LocalCopies
from nanochat_core.artifacts.stamps import Stamps
from nanochat_core.artifacts.store import ArtifactStore

NUM_USERS, NUM_ROUNDS = 4, 15
LIMIT_BYTES = 5_000
"""Of about 12,500 in all."""


def main(arguments: Sequence[str]) -> None:
    """Start the users and wait for them."""
    url, folder = arguments[0], Path(arguments[1])
    context = multiprocessing.get_context("fork")
    barrier, removed = context.Barrier(NUM_USERS, timeout=60), context.Value("i", 0)
    users = [
        context.Process(target=use, args=(url, folder, barrier, removed, number))
        for number in range(NUM_USERS)
    ]
    for user in users:
        user.start()
    for user in users:
        user.join()
    sys.stdout.write(f"{removed.value}\n")
    sys.exit(max(abs(user.exitcode or 0) for user in users))


def use(
    url: str, folder: Path, barrier: Barrier, removed: "Synchronized[int]", number: int
) -> None:
    """Fetch one artifact a round and read it whole."""
    store, choice = ArtifactStore(url), random.Random(number)
    copies = LocalCopies(folder, Stamps(folder.parent / "stamps"), LIMIT_BYTES)
    manifests = [store.manifest(ref) for ref in store.list()]
    for _ in range(NUM_ROUNDS):
        before = age_all(folder) if number == 0 else set()
        barrier.wait()
        manifest = choice.choice(manifests)
        copy = copies.fetch(store.files, manifest)
        barrier.wait()
        text = str(manifest.recipe["depth"]) * 99
        assert (copy / "parts" / "a.txt").read_text(encoding="utf-8") == text
        assert (copy / "model.bin").read_bytes() == text.encode() * 20
        assert copies.fetch(store.files, manifest) == copy
        barrier.wait()
        removed.value += len(before - set(folder.glob("[!.]*/*/*")))
        barrier.wait()


def age_all(folder: Path) -> set[Path]:
    """Every copy, now unused for two days."""
    found, long_ago = set(folder.glob("[!.]*/*/*")), time.time() - 2 * KEEP_SECONDS
    for copy in found:
        os.utime(copy, (long_ago, long_ago))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
