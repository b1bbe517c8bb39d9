"""What surrounds a step, whichever operators it has: IEEE arithmetic, no kernels that hide
operators, its device, and the caller's generators as they were."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch
from torch.backends import mha, nnpack

from veritrain.errors import NumericsError, UsageError
from veritrain.numerics.platform import onednn

_GRAIN = 32_768  # values for which PyTorch takes one more thread
# cuBLAS: float64 products from narrower ones, with as many bits as it finds enough
_EMULATION = ("CUBLAS_EMULATE_DOUBLE_PRECISION", "CUBLAS_FIXEDPOINT_EMULATION_MANTISSA_BIT_COUNT")

_tried = threading.local()


@contextmanager
def ieee_arithmetic() -> Generator[None]:
    """Refuse arithmetic that is not IEEE, before and after the step.

    `torch.set_flush_denormal(True)` makes it so. A thread takes that setting from the thread that
    starts it, and keeps it. So PyTorch's own threads are tried too, once for each number of threads
    that is in use.

    Raises:
        NumericsError: subnormal numbers are flushed to zero.
    """
    _require_subnormals(float(np.float32(2.0**-126) * np.float32(0.5)))
    threads = torch.get_num_threads()
    if getattr(_tried, "threads", None) != threads:
        smallest = torch.full((threads * _GRAIN,), 2.0**-126, dtype=torch.float32, device="cpu")
        _require_subnormals((smallest * 0.5).amin().item())
        _tried.threads = threads
    yield
    _require_subnormals(float(np.float32(2.0**-126) * np.float32(0.5)))


def _require_subnormals(value: float) -> None:
    if value == 0:
        raise NumericsError(
            "subnormal numbers are flushed to zero, by torch.set_flush_denormal(True) perhaps, and "
            "threads that were started meanwhile keep that: start a fresh process without it"
        )


@contextmanager
def on_device(device: torch.device) -> Generator[None]:
    """What a step on a device needs besides the rules.

    Raises:
        UsageError: float64 products are emulated there.
    """
    if device.type == "cpu":
        yield
        return
    from veritrain.numerics.device.gate import DeviceGate  # loads numba

    for name in _EMULATION:
        if os.environ.get(name, "0") != "0":
            raise UsageError(f"{name} makes float64 products inexact; unset it")
    with (
        new_tensors_on(device),
        # cuDNN's operators have other names and no rules; without it PyTorch calls its own
        torch.backends.cudnn.flags(enabled=False),
        # one thread walks the graph, so that gradients of two places meet in the order of the CPU
        torch.autograd.set_multithreading_enabled(False),
        DeviceGate(),
    ):
        yield


def new_tensors_on(device: torch.device) -> AbstractContextManager[object]:
    return nullcontext() if device.type == "cpu" else device


@contextmanager
def no_fused_layers() -> Generator[None]:
    """Within it PyTorch does not use kernels that hide operators or round otherwise.

    These are oneDNN's LSTM, the attention layer in one kernel (as in evaluation), and NNPACK's
    convolutions, which add by Winograd's algorithm, so that their errors have other bounds.
    """
    attention = mha.get_fastpath_enabled()
    mha.set_fastpath_enabled(False)
    try:
        with onednn.without_layers(), nnpack.flags(enabled=False):
            yield
    finally:
        mha.set_fastpath_enabled(attention)


@contextmanager
def callers_generators_kept() -> Generator[None]:
    """Give the caller's Python and numpy generators back afterwards, as they were."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
