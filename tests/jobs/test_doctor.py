"""The doctor on this machine: what it prints, and what it says about what is broken on purpose."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from nanochat_core.bench.disks import FileSpeed
from nanochat_core.bench.number_formats import FormatFinding
from nanochat_core.bench.roofline import Speed
from nanochat_core.jobs.doctor import main, parse
from nanochat_core.jobs.doctor_files import file_problems, files_section
from nanochat_core.jobs.doctor_machine import (
    blind_torch,
    machine_section,
    nvidia_driver,
    processes_section,
    small_shared_memory,
    too_many_ranks,
)
from nanochat_core.jobs.doctor_numbers import attention_section, format_problems, fp8_section
from nanochat_core.jobs.doctor_page import (
    Problem,
    Section,
    number,
    problem_lines,
    section_lines,
    size,
)

CPU = torch.device("cpu")
STORE = "/nowhere"


def run_doctor(*arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "nanochat_core.jobs.doctor", *arguments],
        env={**os.environ, "OMP_WAIT_POLICY": "passive", **changes},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.mark.e2e
def test_the_page_of_this_machine_fits_a_terminal_and_ends_well(tmp_path: Path) -> None:
    done = run_doctor("--store", str(tmp_path / "store"), "--device", "cpu", HOME=str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if len(line) > 80 and str(tmp_path) not in line] == []
    for start in ("machine", "number formats", "attention", "compiler", "files", "sandbox"):
        assert any(line.startswith(start) for line in lines), start
    assert "everything that this setting needs works" in done.stdout
    assert done.stderr == ""
    assert list((tmp_path / ".cache" / "nanochat-flows" / "inductor").iterdir()) == []


@pytest.mark.e2e
def test_what_is_broken_comes_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    empty = tmp_path / "bin"
    empty.mkdir()
    done = run_doctor(
        *("--json", "--device", "cpu", "--attention", "flex"),
        *("--store", str(tmp_path / "file" / "store")),
        PATH=str(empty),
        HOME=str(tmp_path),
    )
    assert done.returncode == 1, done.stdout + done.stderr
    found = json.loads(done.stdout)
    stops = {problem["section"]: problem for problem in found["problems"] if problem["stops"]}
    assert set(stops) == {"attention", "compiler", "files"}
    assert "C++ compiler" in stops["compiler"]["remedy"]
    assert "--store" in stops["files"]["remedy"]
    assert "auto" in stops["attention"]["remedy"]
    first = found["sections"]["number_formats"]["formats"][0]
    assert first["name"] == "float32"
    assert first["speed"]["per_second"] > 1e7


def test_a_mistake_on_the_command_line_is_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--threads", "0"]) == 2
    assert capsys.readouterr().err == "error: --threads and --ranks are 1 or more\n"


@pytest.fixture(autouse=True)
def same_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_setting_is_that_of_the_command_line() -> None:
    words = ["--device", "cpu", "--compute-dtype", "float16", "--no-compile", "--json"]
    setting, as_json = parse(words, STORE)
    assert as_json
    assert str(setting) == (
        "device=cpu dtype=float16 attention=auto compile=false fp8=false ranks=1"
    )
    assert setting.store_url == STORE


def test_attention_that_was_asked_for_and_fails_stops_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    setting, _ = parse(["--device", "cpu", "--attention", "fa4"], STORE)
    section = attention_section(setting)
    assert [row[1] for row in section.rows if row[0] == "sdpa"] == ["yes"]
    (problem,) = section.problems
    assert problem.stops
    assert "sdpa" in problem.remedy


def test_fp8_on_a_cpu_works_and_is_said_to_be_for_tests() -> None:
    section = fp8_section(parse(["--device", "cpu", "--fp8"], STORE)[0])
    assert section.problems == []
    assert section.rows[0][0] == "emulated, for tests only"


def finding(name: str, **values: Any) -> FormatFinding:
    return FormatFinding(name, **{"works": True, "is_native": True, **values})


def test_a_chosen_format_that_fails_stops_and_one_that_is_emulated_does_not() -> None:
    plain = finding("bfloat16")
    broken = finding("float16", works=False, reason="no kernel")
    (problem,) = format_problems([plain, broken], "float16", None)
    assert problem.stops
    assert "no kernel" in problem.what
    (problem,) = format_problems([plain, finding("float16", is_native=False)], "float16", None)
    assert not problem.stops
    assert format_problems([plain, broken], "bfloat16", None) == []


def test_a_gpu_far_below_its_data_sheet_is_a_problem() -> None:
    slow = finding("bfloat16", speed=Speed(300e12, 8192, 3.7))
    (problem,) = format_problems([slow], "bfloat16", 989e12)
    assert "30%" in problem.what
    assert format_problems([slow], "bfloat16", 400e12) == []


def test_a_driver_whose_gpus_torch_does_not_see_is_told(tmp_path: Path) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    (problem,) = blind_torch(0, wants_cuda=True, folder=tmp_path)
    assert problem.stops
    assert blind_torch(1, wants_cuda=True, folder=tmp_path) == []
    assert blind_torch(0, wants_cuda=True, folder=tmp_path / "absent") == []


@pytest.mark.parametrize(
    "line",
    [
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.133.20  Sun Mar 30 2025\n",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.133.20  Release Build\n",
    ],
)
def test_the_driver_is_read_from_either_form_of_its_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "version").write_text(line + "GCC version: gcc 12\n")
    assert nvidia_driver(tmp_path / "version") == "NVIDIA 570.133.20"
    assert nvidia_driver(tmp_path / "absent") == ""


def test_several_gpus_with_little_shared_memory_are_told(tmp_path: Path) -> None:
    enough = shutil.disk_usage(tmp_path).total
    assert len(small_shared_memory(2, tmp_path, min_bytes=enough + 1)) == 1
    assert small_shared_memory(2, tmp_path, min_bytes=enough) == []
    assert small_shared_memory(1, tmp_path, min_bytes=enough + 1) == []


def test_one_rank_can_sum_with_gloo() -> None:
    section = processes_section(CPU, ranks=2)
    assert section.data == {"gloo": ""}
    assert section.problems == []


def test_more_ranks_than_gpus_stop_the_setting() -> None:
    (problem,) = too_many_ranks(8, 2)
    assert problem.stops
    assert "ranks=2" in problem.remedy
    assert too_many_ranks(2, 2) == []


def test_the_machine_is_named() -> None:
    section = machine_section(CPU, wants_cuda=False)
    assert section.data["cores"] >= 1
    assert torch.__version__ in section.data["python"]


def test_files_name_a_store_that_does_not_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    section = files_section(str(tmp_path / "file" / "store"), seconds=0.02)
    (problem,) = section.problems
    assert problem.stops
    assert "Not a directory" in problem.what
    assert section.data["temporary"]["keeps_first"]


def test_slow_full_and_forgetful_places_are_told() -> None:
    slow = FileSpeed(1e6, 1e9, 100, keeps_first=False)
    problems = file_problems("store", "here", slow, free=10**6)
    assert [problem.stops for problem in problems] == [True, False, False]
    sound = FileSpeed(1e9, 1e9, 100, keeps_first=True)
    assert file_problems("store", "here", sound, free=10**12) == []


def test_a_table_wraps_its_last_column_only() -> None:
    rows = [("sdpa", "12.5", "chosen"), ("flex", "1", "a reason with many words " * 5)]
    section = Section("attention", rows, ("backend", "ms", "note"), numeric=(1,))
    lines = section_lines(section, width=50)
    assert max(map(len, lines)) <= 50
    assert lines[1:4] == [
        "  backend    ms  note",
        "  sdpa     12.5  chosen",
        "  flex        1  a reason with many words a reason",
    ]
    assert lines[4].startswith(" " * 17 + "with many")


def test_a_problem_that_stops_has_two_marks() -> None:
    assert problem_lines(Problem("it is broken.", "mend it", stops=True)) == [
        "  !! it is broken. mend it."
    ]
    assert problem_lines(Problem("odd", "look"))[0].startswith("  !  odd")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0, "0.000"), (0.0832, "0.083"), (12.345, "12.3"), (1234.5, "1,234")],
)
def test_numbers_have_few_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_sizes_have_units() -> None:
    assert [size(n) for n in (2000, 64e6, 78.5e9, 2e12)] == ["2 kB", "64 MB", "78.5 GB", "2 TB"]
