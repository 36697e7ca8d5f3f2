"""The memory of the chunked loss, as the system counts it, against the calculation."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanochat_core.model.layers import Linear
from nanochat_core.model.loss import head_loss_bytes, summed_loss

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from nanochat_core.model import loss as loss_module
from nanochat_core.model.layers import Linear

rows, columns, channels, dtype, compiled, chunk = json.loads(sys.argv[1])
torch.set_num_threads(1)
loss_module.CPU_CHUNK_ELEMENTS = chunk
head = Linear(channels, columns)
torch.nn.init.normal_(head.weight)
x = torch.randn(rows, channels).to(getattr(torch, dtype)).requires_grad_()
targets = torch.randint(columns, (rows,))


def train(rows):
    loss = loss_module.summed_loss(
        x[:rows], head, targets[:rows], None, vocab_size=columns, compiled=compiled
    )
    torch.autograd.grad(loss, [x, head.weight])


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


train(chunk // columns)  # libraries are loaded, kernels compiled
Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
before = status("VmRSS:")
train(rows)
print(status("VmHWM:") - before)
"""


@pytest.mark.e2e  # by its time: a process that computes 2**26 logits
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_peak_of_memory_is_the_calculated_one(
    compiled: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process can only be reset on Linux")
    rows, columns, channels, chunk = 2048, 32768, 64, 2**25
    arguments = json.dumps([rows, columns, channels, dtype, compiled, chunk])
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, arguments], check=True, capture_output=True, text=True
    )
    monkeypatch.setattr("nanochat_core.model.loss.CPU_CHUNK_ELEMENTS", chunk)
    expected = head_loss_bytes(
        rows, channels, columns, getattr(torch, dtype), compiled=compiled, device_type="cpu"
    )
    assert int(run.stdout) == pytest.approx(expected, rel=0.2)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_peak_of_memory_on_a_gpu_is_the_calculated_one(
    compiled: bool, dtype: torch.dtype
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rows, columns, channels = 16384, 32768, 256
    head = Linear(channels, columns).cuda()
    torch.nn.init.normal_(head.weight)
    x = torch.randn(rows, channels, device="cuda", dtype=dtype, requires_grad=True)
    targets = torch.randint(columns, (rows,), device="cuda")
    peaks = []
    for _ in range(2):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        loss = summed_loss(x, head, targets, None, vocab_size=columns, compiled=compiled)
        torch.autograd.grad(loss, [x, head.weight])
        peaks.append(torch.cuda.max_memory_allocated() - before)
        del loss
    expected = head_loss_bytes(rows, channels, columns, dtype, compiled=compiled)
    assert peaks[1] == pytest.approx(expected, rel=0.2)
