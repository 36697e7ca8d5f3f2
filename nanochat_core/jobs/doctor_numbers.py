"""What the doctor finds about arithmetic: number formats, fp8 training, attention backends."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from nanochat_core.artifacts.location import user_cache_folder
from nanochat_core.bench.number_formats import (
    FORMATS,
    FP8_ALLOWED_ERROR,
    FormatFinding,
    examine_format,
    fp8_training_error,
)
from nanochat_core.bench.roofline import measure_copy
from nanochat_core.errors import ConfigError, NanochatError
from nanochat_core.jobs.doctor_page import Problem, Section, cause, number, yes
from nanochat_core.model.backends.choosing import choose_backend, fastest, try_all
from nanochat_core.model.fp8 import check_fp8
from nanochat_core.training.hardware_peaks import data_sheet_flops
from nanochat_core.training.precision import resolve_compute_dtype

FORMAT_SECONDS = 0.3
SLOW_GPU = 0.5
"""Of the data sheet; a sound H100 reaches 0.77."""


@dataclass(frozen=True)
class Setting:
    """What is going to be run; problems that stop it make the exit code."""

    device: torch.device
    compute_dtype: str
    attention: str
    fp8: bool
    compiles: bool
    ranks: int
    store_url: str

    @property
    def dtype(self) -> torch.dtype:
        """The compute dtype, with `auto` worked out."""
        return resolve_compute_dtype(self.compute_dtype, self.device)

    def __str__(self) -> str:
        parts = {
            "device": self.device.type,
            "dtype": dtype_name(self.dtype),
            "attention": self.attention,
            "compile": str(self.compiles).lower(),
            "fp8": str(self.fp8).lower(),
            "ranks": str(self.ranks),
        }
        return " ".join(f"{name}={value}" for name, value in parts.items())


def formats_section(setting: Setting) -> Section:
    """Number formats and the speed of memory, which together are the roofline."""
    device, chosen = setting.device, dtype_name(setting.dtype)
    findings = [examine_format(name, device, seconds=FORMAT_SECONDS) for name in FORMATS]
    copy = measure_copy(device, seconds=FORMAT_SECONDS)
    sheet = data_sheet_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    unit, power = ("GFLOP/s", 1e9) if device.type == "cpu" else ("TFLOP/s", 1e12)
    rows = [
        (
            finding.name,
            yes(finding.works),
            yes(finding.is_native),
            number(finding.speed.per_second / power) if finding.speed else "",
            str(finding.speed.size) if finding.speed else "",
            f"{finding.error:.0e}" if finding.error is not None else "",
            format_note(finding, chosen, sheet),
        )
        for finding in findings
    ]
    num_threads = torch.get_num_threads()
    threads = f", {num_threads} thread{'s' * (num_threads > 1)}" if device.type == "cpu" else ""
    return Section(
        "number formats",
        rows,
        ("format", "works", "native", unit, "matrix", "error", "note"),
        about=f"on {device}{threads}; memory: {copy.per_second / 1e9:,.1f} GB/s in a copy",
        numeric=(3, 4, 5),
        problems=format_problems(findings, chosen, sheet),
        data={
            "chosen": chosen,
            "copy_bytes_per_second": copy.per_second,
            "formats": [asdict(finding) for finding in findings],
        },
    )


def format_note(finding: FormatFinding, chosen: str, sheet: float | None) -> str:
    """Why a format does not work, whether it is chosen, and how near its data sheet it comes."""
    notes = ["chosen"] if finding.name == chosen else []
    if finding.name == "bfloat16" and sheet and finding.speed:
        notes.append(f"{finding.speed.per_second / sheet:.0%} of the data sheet")
    return "; ".join(notes + ([finding.reason] if finding.reason else []))


def format_problems(
    findings: Sequence[FormatFinding], chosen: str, sheet: float | None
) -> list[Problem]:
    """A chosen format that does not work or is emulated, and a GPU far from its data sheet."""
    by_name = {finding.name: finding for finding in findings}
    finding, problems = by_name[chosen], []
    if not finding.works:
        what = f"{chosen} does not work here: {finding.reason}"
        problems.append(Problem(what, "Choose another compute_dtype", stops=True))
    elif not finding.is_native:
        what = f"{chosen} is emulated here, and slow"
        problems.append(Problem(what, "Leave compute_dtype at auto"))
    bfloat16 = by_name["bfloat16"].speed
    if sheet and bfloat16 and bfloat16.per_second < SLOW_GPU * sheet:
        what = f"bfloat16 reaches {bfloat16.per_second / sheet:.0%} of the data sheet"
        look = "Look for other users, heat and power: nvidia-smi -q -d PERFORMANCE,POWER"
        problems.append(Problem(what, look))
    return problems


def fp8_section(setting: Setting) -> Section:
    """Whether a training product in fp8 comes near the exact one, forward and backward."""
    title = "fp8 training"
    try:
        if setting.device.type != "cpu":
            check_fp8(setting.device, torch.bfloat16)
        error = fp8_training_error(setting.device)
    except (ConfigError, RuntimeError, TypeError) as trouble:
        problem = Problem(f"no fp8: {cause(trouble)}", "Leave fp8 at false", stops=True)
        problems = [problem] if setting.fp8 else []
        rows = [("refused", cause(trouble))]
        return Section(title, rows, problems=problems, data={"works": False, "reason": rows[0][1]})
    works = error <= FP8_ALLOWED_ERROR
    place = "emulated, for tests only" if setting.device.type == "cpu" else "in hardware"
    said = f"{error:.1%} off the exact product, allowed {FP8_ALLOWED_ERROR:.0%}"
    wrong = Problem(f"fp8 is wrong: {said}", "Leave fp8 at false", stops=setting.fp8)
    return Section(
        title,
        [(place, f"{'right' if works else 'wrong'}: {said}")],
        problems=[] if works else [wrong],
        data={"works": works, "error": error},
    )


def attention_section(setting: Setting) -> Section:
    """Every attention backend on trial, and the one that training would take."""
    device, dtype = setting.device, setting.dtype
    verdicts = try_all(device, dtype, attention_folder())
    try:
        choice = choose_backend(setting.attention, device, dtype, attention_folder())
    except NanochatError as error:
        name, reason = "", ""
        what, _, advice = str(error).rpartition("; ")  # ends with what to use instead
        problems = [Problem(what, advice[:1].upper() + advice[1:], stops=True)]
    else:
        name, reason, problems = choice.name, choice.reason, []
    rows = [
        (
            verdict.backend,
            yes(verdict.passes),
            f"{verdict.error:.0e}" if verdict.error is not None else "",
            number(verdict.milliseconds),
            "chosen" if verdict.backend == name else "" if verdict.passes else verdict.reason,
        )
        for verdict in verdicts
    ]
    return Section(
        "attention",
        rows,
        ("backend", "passes", "error", "ms", "note"),
        about=f"in {dtype_name(dtype)}, forward and backward",
        numeric=(2, 3),
        problems=problems,
        data={
            "chosen": name,
            "reason": reason,
            "fastest": fastest(verdicts),
            "verdicts": [asdict(verdict) for verdict in verdicts],
        },
    )


def attention_folder() -> Path:
    """Where verdicts on attention backends are kept."""
    return user_cache_folder() / "attention"


def dtype_name(dtype: torch.dtype) -> str:
    """`bfloat16` of `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
