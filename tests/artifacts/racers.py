"""Processes that publish the same artifact at the same moment, round after round.

Arguments: store URL, folder to work in, number of processes, number of rounds. They are forked
before anything is opened, as 16 interpreters would take half a minute to start.
"""

import multiprocessing
import sys
from collections.abc import Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path

# Imported before the fork, so that the racers need not.
import s3fs  # noqa: F401
from store_tools import OUTPUT, fill, make_request

from nanochat_core.artifacts.store import ArtifactStore


def main(arguments: Sequence[str]) -> None:
    """Start the racers and wait for them."""
    url, folder, num_racers, num_rounds = *arguments[:2], *map(int, arguments[2:])
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(num_racers, timeout=120)
    racers = [
        context.Process(target=race, args=(url, Path(folder) / str(i), barrier, num_rounds))
        for i in range(num_racers)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    sys.exit(max(abs(racer.exitcode or 0) for racer in racers))


def race(url: str, folder: Path, barrier: Barrier, num_rounds: int) -> None:
    """Publish one artifact a round, from files of one's own."""
    store = ArtifactStore(url, cache_folder=folder / "cache")
    for step in range(num_rounds):
        request = make_request(round=step)
        store.lookup(request)
        work = fill(folder / str(step), record=f"{folder.name}\n")
        barrier.wait()
        ref = store.publish(request, work, OUTPUT)
        # In one piece, as all racers write to the same pipe.
        sys.stdout.write(f"{step} {ref.manifest} {store.manifest(ref).attempt}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
