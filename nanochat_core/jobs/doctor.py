"""What this machine can do for training, measured now: `python -m nanochat_core.jobs.doctor`.

Every section is tried in this process and printed when it is done; what does not work comes with
what to do. The exit code is 1 when something that the chosen setting needs does not work.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch

from nanochat_core.artifacts.location import default_store_url, user_cache_folder
from nanochat_core.distributed.ranks import DEVICES, pick_device
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.jobs.doctor_files import files_section
from nanochat_core.jobs.doctor_machine import (
    compiler_section,
    machine_section,
    processes_section,
    sandbox_section,
)
from nanochat_core.jobs.doctor_numbers import (
    Setting,
    attention_section,
    dtype_name,
    formats_section,
    fp8_section,
)
from nanochat_core.jobs.doctor_page import Problem, Section, cause, section_lines
from nanochat_core.model.backends.opening import OPENERS
from nanochat_core.training.precision import DTYPES

EXIT_BROKEN, EXIT_USER_ERROR = 1, 2


def sections(setting: Setting) -> Iterator[Section]:
    """One finding after the other, as they are made."""
    device = setting.device
    kernels = user_cache_folder() / "inductor"
    several = setting.ranks > 1
    makers: list[tuple[str, bool, Callable[[], Section]]] = [
        ("machine", False, lambda: machine_section(device, wants_cuda=device.type == "cuda")),
        ("number formats", True, lambda: formats_section(setting)),
        ("fp8 training", setting.fp8, lambda: fp8_section(setting)),
        ("attention", True, lambda: attention_section(setting)),
        (
            "compiler",
            setting.compiles,
            lambda: compiler_section(device, stops=setting.compiles, cache_parent=kernels),
        ),
        ("several processes", several, lambda: processes_section(device, ranks=setting.ranks)),
        ("files", True, lambda: files_section(setting.store_url)),
        ("sandbox", False, sandbox_section),
    ]
    for name, is_needed, make in makers:
        try:
            yield make()
        except Exception as error:  # noqa: BLE001  what a sick machine raises is what is asked for
            remedy = "Nobody expected this: report it, with the output of --json"
            problem = Problem(f"could not be examined: {cause(error)}", remedy, stops=is_needed)
            yield Section(name, [], problems=[problem], data={"reason": str(error)})


def parse(argv: Sequence[str], store_url: str) -> tuple[Setting, bool]:
    """The setting of a command line, and whether JSON is asked for; ConfigError."""
    parser = argparse.ArgumentParser(prog="nanochat doctor", description=__doc__)
    parser.add_argument("--device", choices=DEVICES, default="auto")
    parser.add_argument("--compute-dtype", choices=("auto", *DTYPES), default="auto")
    parser.add_argument("--attention", choices=("auto", *OPENERS), default="auto")
    parser.add_argument("--fp8", action="store_true", help="training in fp8 is wanted")
    parser.add_argument("--no-compile", action="store_true", help="torch.compile is not wanted")
    parser.add_argument("--ranks", type=int, default=1, help="training processes")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of a process")
    parser.add_argument("--store", default=store_url, help="folder or URL of the artifacts")
    parser.add_argument("--json", action="store_true", help="one JSON object, no tables")
    options = parser.parse_args(argv)
    if min(options.threads, options.ranks) < 1:
        raise ConfigError("--threads and --ranks are 1 or more")
    torch.set_num_threads(options.threads)
    setting = Setting(
        device=pick_device(options.device),
        compute_dtype=options.compute_dtype,
        attention=options.attention,
        fp8=options.fp8,
        compiles=not options.no_compile,
        ranks=options.ranks,
        store_url=options.store,
    )
    return setting, options.json


def main(argv: Sequence[str]) -> int:
    """Examine everything, print it, and return the exit code."""
    environ = os.environ  # noqa: TID251  an entry: read here, passed down as values
    # Kernels that are tried and found wanting say so in the table.
    warnings.simplefilter("ignore")
    try:
        setting, as_json = parse(argv, default_store_url(environ))
    except NanochatError as error:
        sys.stderr.write(f"error: {error}\n")
        return EXIT_USER_ERROR
    started, found = time.monotonic(), []
    for section in sections(setting):
        found.append(section)
        if not as_json:
            sys.stdout.write("\n".join([*section_lines(section), "", ""]))
            sys.stdout.flush()
    problems = [problem for section in found for problem in section.problems]
    num_stops, seconds = sum(problem.stops for problem in problems), time.monotonic() - started
    if as_json:
        sys.stdout.write(json.dumps(as_object(setting, found, seconds), indent=1) + "\n")
    else:
        sys.stdout.write(verdict(setting, len(problems), num_stops, seconds))
    return EXIT_BROKEN if num_stops else 0


def verdict(setting: Setting, num_problems: int, num_stops: int, seconds: float) -> str:
    """The last lines of the page."""
    said = "everything that this setting needs works"
    if num_stops:
        said = f"{counted(num_stops)} marked !! would stop this setting"
    if others := num_problems - num_stops:
        said += f"; {counted(others)} marked ! would not"
    return f"{said} ({seconds:.0f} s)\n  {setting}\n"


def counted(number: int) -> str:
    """`1 problem`, `2 problems`."""
    return f"{number} problem{'s' * (number != 1)}"


def as_object(setting: Setting, found: Sequence[Section], seconds: float) -> dict[str, Any]:
    """Everything that was found, for programs."""
    return {
        "setting": {
            **asdict(setting),
            "device": str(setting.device),
            "dtype": dtype_name(setting.dtype),
        },
        "sections": {section.name.replace(" ", "_"): section.data for section in found},
        "problems": [
            {"section": section.name, **asdict(problem)}
            for section in found
            for problem in section.problems
        ],
        "seconds": round(seconds, 2),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
