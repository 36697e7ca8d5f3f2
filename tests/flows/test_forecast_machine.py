"""Which machine a forecast is for, and what of it decides how a job computes."""

from pathlib import Path

import pytest

from flows.forecast.machine import (
    Machine,
    computes_bfloat16,
    cpu_model,
    machine_here,
    machine_named,
    machine_of,
    matmul_flops,
)
from nanochat_core.config.execution import Execution
from nanochat_core.errors import ConfigError
from nanochat_core.training.hardware_peaks import PEAK_BF16_FLOPS
from nanochat_core.training.precision import cpu_has_bfloat16

CPUINFO = """processor : 0
model name\t: AMD EPYC  9354 32-Core
flags\t\t: fpu sse2 {flags}
"""


@pytest.mark.parametrize("flags", ["avx512_bf16", "amx_bf16 x", "avx512_bf16x", ""])
def test_bfloat16_is_chosen_where_training_chooses_it(tmp_path: Path, flags: str) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(CPUINFO.format(flags=flags))
    machine = Machine(device_type="cpu")
    assert computes_bfloat16(machine, cpuinfo) == cpu_has_bfloat16(cpuinfo)
    assert cpu_model(cpuinfo) == "AMD EPYC 9354 32-Core"
    assert cpu_model(tmp_path / "nothing") == ""
    assert not computes_bfloat16(machine, tmp_path / "nothing")


def test_machines_are_alike_by_gpu_for_jobs_and_by_cores_for_the_rest() -> None:
    cpu = Machine(device_type="cpu", architecture="x86_64", cpus=2)
    gpu = cpu.model_copy(update={"device_type": "cuda", "gpu": "H100"})
    larger = gpu.model_copy(update={"cpus": 64})
    assert not cpu.is_like(gpu, uses_device=True)
    assert cpu.is_like(gpu, uses_device=False)
    assert gpu.is_like(larger, uses_device=True)
    assert not gpu.is_like(larger, uses_device=False)
    named = cpu.model_copy(update={"cpu": "AMD EPYC"})
    assert cpu.is_like(named, uses_device=True)
    assert not named.is_like(cpu.model_copy(update={"cpu": "Apple M4"}), uses_device=True)


@pytest.mark.parametrize("name", [*PEAK_BF16_FLOPS, "h100", "nvidia A100"])
def test_a_gpu_is_named_by_a_word_of_its_data_sheet(name: str) -> None:
    machine = machine_named(name, Machine(device_type="cpu", cpus=8))
    assert machine.gpu in PEAK_BF16_FLOPS
    assert (machine.device_type, machine.cpus) == ("cuda", 8)
    with pytest.raises(ConfigError, match="H100"):
        machine_named("abacus", machine)


def test_the_machine_of_a_record_is_found_again_from_what_a_job_says_here() -> None:
    hardware = {"cpus": 16, "machine": "x86_64"}
    told = {"hardware": hardware, "device_type": "cuda", "device": "NVIDIA H100 80GB HBM3"}
    found = machine_of(told)
    assert found == Machine(device_type="cuda", gpu="H100", architecture="x86_64", cpus=16)
    assert machine_of({"device_type": "cuda"}) is None
    assert machine_of({"hardware": hardware, "device_type": "abacus"}) is None
    assert machine_here(Execution(device="cpu")).device_type == "cpu"


def test_a_matrix_product_is_measured_in_a_process_of_its_own() -> None:
    flops = matmul_flops()
    assert flops is not None
    assert 1e8 < flops < 1e14
