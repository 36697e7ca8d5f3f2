"""FlashAttention 3 and 4: how their kernels are found, called and made into operators."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nanochat_core.model.attention import Backend
from nanochat_core.model.backends import fa3, fa4, trial
from nanochat_core.model.backends.flash_ops import flash_backend
from nanochat_core.model.backends.hardware import UnavailableError
from nanochat_core.model.backends.trial import try_attention
from tests.model.flash_lookalikes import FA4_INTERFACE, fa3_operators

CPU, HEAD_DIM = torch.device("cpu"), 16
compiling = pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated",  # given by torch itself, about itself
)
# By their time: the first call of any operator of Python's imports the compiler.
importing = pytest.mark.distributed


def lookalike(name: str) -> Backend:
    """A backend over the stand-in of a package, wrapped as the real one is."""
    if name == "fa4":
        return flash_backend("test_fa4", fa4.fa4_kernels(FA4_INTERFACE))
    return flash_backend("test_fa3", fa3.fa3_kernels(torch.ops.flash_attn_3))


SHORT = tuple(case._replace(length=40, window=min(case.window, 40)) for case in trial.CASES)


def short_error(attend: Backend, dtype: torch.dtype = torch.bfloat16) -> float:
    return trial.largest_error(attend, CPU, dtype, HEAD_DIM, SHORT)


@importing
@compiling
@pytest.mark.parametrize("name", ["fa3", "fa4"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_flash_kernels_are_called_with_what_they_take(name: str, dtype: torch.dtype) -> None:
    with fa3_operators():
        assert short_error(lookalike(name), dtype) < trial.TOLERANCES[dtype] / 2


@importing
@compiling
@pytest.mark.parametrize("name", ["fa3", "fa4"])
def test_one_key_more_goes_to_the_kernel_as_one_key_more(name: str) -> None:
    with fa3_operators():
        attend = lookalike(name)

        def one_more(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> Tensor:
            return attend(q, k, v, window=window + 1)

        assert short_error(one_more) > 0.1


@importing
@compiling
def test_kernels_are_asked_for_the_deterministic_backward_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "are_deterministic_algorithms_enabled", lambda: True)
    with fa3_operators():  # each of them checks what it is told
        assert short_error(lookalike("fa3")) < 0.03
        assert short_error(lookalike("fa4")) < 0.03


def test_float32_is_refused_by_flash_kernels_in_words() -> None:
    verdict = try_attention("fa4", lookalike("fa4"), CPU, torch.float32, HEAD_DIM)
    expected = "computes in bfloat16 and float16; this run computes in float32"
    assert verdict.reason == expected


@importing
@compiling
@pytest.mark.parametrize("name", ["fa3", "fa4"])
def test_the_operators_keep_the_rules_of_pytorch_and_trace_into_one_graph(name: str) -> None:
    shape = {"q": (2, 10, 4, 16), "k": (2, 10, 2, 16), "v": (2, 10, 2, 16)}
    q, k, v = (torch.randn(size).bfloat16().requires_grad_() for size in shape.values())
    with fa3_operators():
        attend = lookalike(name)
        operators = getattr(torch.ops.nanochat, f"test_{name}_forward")
        # Aliases, mutation, shapes without running, autograd, and both under the compiler.
        torch.library.opcheck(operators.default, (q, k, v, 3))

        def layer(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return (attend(q * 2, k, v, window=3) + 1).float().square().sum()

        traced = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=False)
        given, wanted = traced(q, k, v), layer(q, k, v)
        torch.testing.assert_close(given, wanted)
        torch.testing.assert_close(
            torch.autograd.grad(given, (q, k, v)), torch.autograd.grad(wanted, (q, k, v))
        )


# --- where the kernels are found


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str) -> None:
    """A package that can be imported until the test ends."""
    path = folder / Path(*name.split(".")).with_suffix(".py")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    monkeypatch.syspath_prepend(folder)
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.delitem(sys.modules, ".".join(parts[:end]), raising=False)


def test_without_a_package_both_flash_backends_say_what_to_install() -> None:
    with pytest.raises(UnavailableError, match="pip install kernels"):
        fa3.find_operators()
    with pytest.raises(UnavailableError, match="pip install --pre flash-attn-4"):
        fa4.find_interface()


def test_operators_that_are_registered_already_are_taken() -> None:
    with fa3_operators():
        assert fa3.find_operators() is torch.ops.flash_attn_3


def test_a_module_that_registers_the_operators_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from tests.model.flash_lookalikes import fa3_operators\n"
        "scope = fa3_operators()\nscope.__enter__()\n"
    )
    package(tmp_path, monkeypatch, "flash_attn_interface", code)
    assert fa3.find_operators() is torch.ops.flash_attn_3
    sys.modules.pop("flash_attn_interface").scope.__exit__(None, None, None)


def test_the_hub_is_asked_for_a_fixed_version_where_its_client_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "from types import SimpleNamespace\n"
        "def get_kernel(repo_id, *, revision=None, version=None):\n"
        "    return SimpleNamespace(ops=(repo_id, version))\n"
    )
    package(tmp_path, monkeypatch, "kernels", code)
    assert fa3.find_operators() == ("kernels-community/flash-attn3", 1)
    sys.modules.pop("kernels")


def test_a_broken_package_of_flash_attention_4_is_not_taken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, "flash_attn.cute.interface", "import cutlass_is_missing\n")
    with pytest.raises(ModuleNotFoundError, match="cutlass_is_missing"):
        fa4.find_interface()
    for name in ("flash_attn.cute", "flash_attn"):
        sys.modules.pop(name)


def compile_library(path: Path, source: str, *options: str) -> None:
    compiler = (sysconfig.get_config_var("CC") or "cc").split()[0]
    path.parent.mkdir(parents=True, exist_ok=True)
    code = path.with_suffix(".c")
    code.write_text(source)
    command = [compiler, "-shared", "-fPIC", "-o", path, code, *options]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("no C compiler")


def test_a_library_inside_xformers_is_loaded_with_the_cuda_runtime_that_it_links_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(tmp_path, monkeypatch, "xformers.__init__", "raise ImportError('wants torch 2.10')")
    library = tmp_path / "xformers" / "flash_attn_3" / "_C.so"
    runtime = tmp_path / "nvidia" / "cuda_runtime" / "lib" / "libcudart.so.12"
    compile_library(runtime, "int cuda(void) { return 12; }", "-Wl,-soname,libcudart.so.12")
    compile_library(library, "int cuda(void); int f(void) { return cuda(); }", str(runtime))
    runtime.rename(tmp_path / "elsewhere")
    assert fa3.find_library() == library
    with pytest.raises(UnavailableError, match="pip install nvidia-cuda-runtime-cu12"):
        fa3.load_library(library)
    (tmp_path / "elsewhere").rename(runtime)
    fa3.load_library(library)
    library.with_name("_C2.so").write_bytes(b"no library")
    with pytest.raises(OSError, match=r"_C2.so") as caught:
        fa3.load_library(library.with_name("_C2.so"))
    assert "file too short" in trial._in_words(caught.value)
