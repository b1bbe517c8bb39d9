"""The Triton kernels: through the interpreter on this machine, and as machine code for one that has
a GPU.

Neither needs a GPU; both need Triton, which PyTorch's CUDA builds bring along.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from veritrain.numerics.device import fused
from veritrain.numerics.device.elementary_twins import FUNCTIONS
from veritrain.numerics.device.update_twins import Adam, Sgd

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed"
)
HOPPER = 90

# One rounding to nearest each, or none; no `fma`, no `approx`, no `full`, no `ftz`.
EXACT = re.compile(
    r"(add|sub|mul|div|sqrt)\.rn\.f(32|64)|cvt\.f64\.f32|cvt\.rn\.f32\.f64|cvt\.rn\.f(32|64)\.[su]64"
    r"|(abs|neg|selp)\.f(32|64)|setp\.\w+\.f(32|64)"
)
FLOATING = re.compile(
    r"^\s+(?:@%?\S+ )?([a-z0-9]+\.[a-z0-9._]*f(?:32|64)[a-z0-9._]*)\s", re.MULTILINE
)

ELEMENTARY = "x_ptr:*fp32 out_ptr:*i32 undecided_ptr:*i64 count:i32"
INTEGERS = {
    "scaled": (
        "x_ptr:*fp32 factor_ptr:*fp64 q_ptr:*fp64 num_a:i32 num_c:i32 num_b:i32 count:i32",
        {"BLOCK": 1024},
    ),
    "added_rows": (
        "x_ptr:*fp32 factor_ptr:*fp64 totals_ptr:*i64 num_a:i32 num_c:i32 num_b:i32",
        {"BLOCK": 1024},
    ),
    "added_columns": (
        "x_ptr:*fp32 factor_ptr:*fp64 totals_ptr:*i64 num_a:i32 num_c:i32",
        {"ROWS": 32, "COLUMNS": 32},
    ),
    "uniform24": ("key:u64 out_ptr:*fp32 count:i32", {"BLOCK": 1024}),
    "rescale": (
        "c_ptr:*fp64 row_ptr:*fp64 column_ptr:*fp64 out_ptr:*fp32 num_m:i32 num_n:i32 count:i32",
        {"BLOCK": 1024},
    ),
}


def instructions(kernel, signature, constants) -> set[str]:
    """The floating-point instructions of a kernel compiled for Hopper."""
    from triton import compile as compile_kernel
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    types = dict(item.split(":") for item in signature.split())
    types |= dict.fromkeys(constants, "constexpr")
    code = compile_kernel(
        ASTSource(kernel, types, constants),
        target=GPUTarget("cuda", HOPPER, 32),
        options=fused._OPTIONS,
    )
    return set(FLOATING.findall(code.asm["ptx"]))


@pytest.mark.timeout(300)
def test_interpreted_kernels_equal_the_cpus():
    cases = Path(__file__).with_name("fused_interpreted.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "[100%]" in done.stdout
    assert "SKIPPED" not in done.stdout


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_machine_code_of_elementary_functions(name):
    found = instructions(
        fused.elementary_kernel(name, FUNCTIONS[name]), ELEMENTARY, {"BLOCK": 1024}
    )
    assert "cvt.rn.f32.f64" in found
    assert {one for one in found if not EXACT.fullmatch(one)} == set()


@pytest.mark.parametrize("name", INTEGERS)
def test_machine_code_of_integers(name):
    found = instructions(getattr(fused._kernels(), name), *INTEGERS[name])
    assert found & {"mul.rn.f32", "mul.rn.f64"}
    assert {one for one in found if not EXACT.fullmatch(one)} == set()


@pytest.mark.parametrize("rule", [Adam(True, False, True), Sgd(True, False, True, True, True)])
def test_machine_code_of_optimisers(rule):
    tensors, scalars, results = (5, 8, 4) if isinstance(rule, Adam) else (3, 4, 2)
    pointers = [f"x{i}_ptr" for i in range(tensors)] + [f"out{i}_ptr" for i in range(results)]
    numbers = [f"x{tensors + i}" for i in range(scalars)]
    signature = " ".join([*(f"{p}:*fp32" for p in pointers), *(f"{n}:fp32" for n in numbers)])
    kernel = fused.elementwise_kernel(rule, tensors, scalars, results)
    found = instructions(kernel, f"{signature} count:i32", {"BLOCK": 1024})
    assert {"add.rn.f32", "mul.rn.f32"} <= found
    assert {one for one in found if not EXACT.fullmatch(one)} == set()


def test_fused_operations_would_be_seen(monkeypatch):
    """Without the option that forbids it, the assembler may fuse what does not say `.rn`."""
    monkeypatch.setattr(fused, "_OPTIONS", {"enable_fp_fusion": True})
    found = instructions(
        fused.elementary_kernel("exp", FUNCTIONS["exp"]), ELEMENTARY, {"BLOCK": 1024}
    )
    assert {one for one in found if not EXACT.fullmatch(one)} >= {"add.f64", "mul.f64"}
