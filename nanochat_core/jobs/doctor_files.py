"""What the doctor finds about the store, the folder that jobs work in, and temporary files."""

import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nanochat_core.artifacts.filesystems import Files
from nanochat_core.artifacts.location import open_files, user_cache_folder
from nanochat_core.bench.disks import FileSpeed, measure_files, within
from nanochat_core.jobs.doctor_page import Problem, Section, cause, number, size

SECONDS = 0.5
STORE_SECONDS = 20.0
"""A store that says nothing for so long is out of reach."""
MIN_FREE_BYTES = 256 * 2**20
"""What a run asks of its store before it starts."""
SLOW_WRITE = 20e6
"""Bytes/s below which a checkpoint of the smallest useful model (100 MB) takes seconds."""


def files_section(store_url: str, *, seconds: float = SECONDS) -> Section:
    """How fast the places are that a run writes to, and how much room they have."""
    places = {"store": store_url}
    if open_files(store_url).local_path("") is None:
        places["work"] = str(user_cache_folder() / "stores")
    places["temporary"] = tempfile.gettempdir()
    rows, problems, data = [], [], {}
    for use, place in places.items():
        row, found, values = examine_place(use, place, seconds)
        rows.append(row)
        problems += found
        data[use] = values
    return Section(
        "files",
        rows,
        ("for", "write", "read", "small", "free", "place"),
        about="in MB/s; small ones of 1 kB in files/s",
        numeric=(1, 2, 3, 4),
        problems=problems,
        data=data,
    )


def examine_place(
    use: str, place: str, seconds: float = SECONDS
) -> tuple[list[str], list[Problem], dict[str, Any]]:
    """The row of one place, its problems, and the same for programs."""
    files = open_files(place)
    free, shown = free_bytes(files), without_home(files.url)
    room = size(free) if free is not None else ""
    try:
        speed = within(STORE_SECONDS, lambda: measure_files(files, seconds=seconds))
    except Exception as error:  # noqa: BLE001  network libraries have errors of their own
        remedy = "Make it writable and reachable, or choose another with --store"
        if use == "temporary":
            remedy = "Make it writable, or let TMPDIR name another folder"
        problem = Problem(f"{use}: {shown} does not work: {cause(error)}", remedy, stops=True)
        return [use, "", "", "", room, shown], [problem], {"place": place, "reason": cause(error)}
    row = [
        use,
        number(speed.write_bytes_per_second / 1e6),
        number(speed.read_bytes_per_second / 1e6),
        number(speed.files_per_second),
        room,
        shown,
    ]
    values = {"place": place, "free_bytes": free, **asdict(speed)}
    return row, file_problems(use, shown, speed, free), values


def without_home(place: str) -> str:
    """A path of this user from `~` on, as people write it."""
    home = str(Path.home())
    return f"~{place[len(home) :]}" if place.startswith(f"{home}{os.sep}") else place


def file_problems(use: str, place: str, speed: FileSpeed, free: int | None) -> list[Problem]:
    """Too little room, a slow disk, a store in which two runs could overwrite each other."""
    problems = []
    if free is not None and free < MIN_FREE_BYTES:
        what = f"{use} {place} has {size(free)} left"
        problems.append(Problem(what, "Free some space, or choose another place", stops=True))
    if speed.write_bytes_per_second < SLOW_WRITE:
        what = f"{use} {place} takes {speed.write_bytes_per_second / 1e6:.1f} MB/s"
        problems.append(Problem(what, "Checkpoints will be slow; choose a faster disk"))
    if use == "store" and not speed.keeps_first:
        what = f"the store {place} ignores conditional writes"
        problems.append(Problem(what, "Run one thing at a time in it"))
    return problems


def free_bytes(files: Files) -> int | None:
    """Room on the disk of a local folder, or of the first one above it that is there."""
    path = files.local_path("")
    if path is None:
        return None
    there = next(folder for folder in (path, *path.parents) if folder.exists())
    return shutil.disk_usage(there).free
