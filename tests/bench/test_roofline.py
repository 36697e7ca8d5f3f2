"""Measured ceilings: products and copies of known size, and number formats against float64."""

import pytest
import torch

from nanochat_core.bench.number_formats import (
    ALLOWED_ERRORS,
    FP8_ALLOWED_ERROR,
    cpu_flags,
    examine_format,
    fp8_training_error,
    is_native,
    product_error,
)
from nanochat_core.bench.roofline import (
    float32_precision,
    measure_copy,
    measure_matmul,
    measured_matmul_flops,
)

CPU = torch.device("cpu")
BRIEF = 0.01


def test_a_product_of_n_rows_counts_two_n_cubed_operations() -> None:
    speed = measure_matmul(CPU, torch.float32, seconds=BRIEF, size=64)
    assert speed.size == 64
    assert speed.per_second == pytest.approx(2 * 64**3 / (speed.milliseconds / 1e3))
    assert 0 < speed.milliseconds < 1e3


def test_a_copied_byte_counts_as_read_and_as_written() -> None:
    speed = measure_copy(CPU, seconds=BRIEF, num_bytes=2**20)
    assert speed.per_second == pytest.approx(2 * 2**20 / (speed.milliseconds / 1e3))


def test_the_ceiling_of_this_process_is_a_number_of_operations_a_second() -> None:
    assert 1e7 < measured_matmul_flops(CPU, torch.float32, seconds=BRIEF) < 1e15


def test_float32_precision_is_as_before_after_a_measurement() -> None:
    before = torch.get_float32_matmul_precision()
    with float32_precision("high"):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16", "float8"])
def test_every_format_of_a_cpu_is_as_near_as_its_digits_allow(name: str) -> None:
    error = product_error(name, CPU, size=64)
    assert ALLOWED_ERRORS[name] / 100 < error < ALLOWED_ERRORS[name]


def test_tf32_is_refused_where_it_would_be_float32() -> None:
    finding = examine_format("tf32", CPU)
    assert not finding.works
    assert finding.speed is None
    assert "capability 8.0" in finding.reason


def test_a_cpu_multiplies_float32_natively_and_float8_never() -> None:
    assert is_native("float32", CPU)
    assert not is_native("float8", CPU)
    assert is_native("bfloat16", CPU) == bool({"avx512_bf16", "amx_bf16"} & cpu_flags())


def test_an_fp8_training_product_is_right_forward_and_backward() -> None:
    assert 0.01 < fp8_training_error(CPU, size=128) < FP8_ALLOWED_ERROR


@pytest.mark.gpu
def test_a_gpu_reaches_more_in_bfloat16_than_in_float32() -> None:
    device = torch.device("cuda")
    with float32_precision("highest"):
        float32 = measure_matmul(device, torch.float32).per_second
    assert measured_matmul_flops(device, torch.bfloat16) > 2 * float32
    assert measure_copy(device).per_second > 1e11


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["float32", "tf32", "bfloat16", "float16", "float8"])
def test_every_native_format_of_a_gpu_works(name: str) -> None:
    device = torch.device("cuda")
    finding = examine_format(name, device)
    assert finding.works or not is_native(name, device), finding.reason
