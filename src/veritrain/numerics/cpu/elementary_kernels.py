"""The kernels of elementary functions: loops that round quick values and intervals to fp32.

Contract: a kernel writes, for each fp32 entry, the bits of the correctly rounded fp32 result, or
`UNDECIDED` where its bound does not decide, and returns the number of undecided entries. LLVM
vectorises the loops.

They run in chunks: where a quick value leaves an entry open, its whole chunk is done again with
intervals. Each function is spelled out, as a kernel with a name of its own. Indices are unsigned:
LLVM does not vectorise one that may be negative. Slices would do, but making them in every chunk
costs reference counts.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from veritrain.numerics.cpu.elementary_constants import NAN, UNDECIDED
from veritrain.numerics.cpu.elementary_intervals import (
    Interval,
    bits32,
    cos_interval,
    cos_two_pi_interval,
    erf_interval,
    erfinv_interval,
    exp_interval,
    expm1_interval,
    float32,
    gelu_grad_interval,
    gelu_interval,
    gelu_tanh_grad_interval,
    gelu_tanh_interval,
    jit,
    log1p_interval,
    log_interval,
    power_interval,
    rsqrt_interval,
    sigmoid_interval,
    silu_grad_interval,
    silu_interval,
    sin_interval,
    sin_two_pi_interval,
    softplus_interval,
    sqrt_interval,
    tanh_interval,
)
from veritrain.numerics.cpu.elementary_quick import (
    exp_quick,
    expm1_quick,
    gelu_grad_near,
    gelu_grad_quick,
    gelu_near,
    gelu_quick,
    gelu_tanh_grad_quick,
    gelu_tanh_quick,
    log_quick,
    rsqrt_quick,
    sigmoid_quick,
    silu_grad_quick,
    silu_quick,
    softplus_quick,
    tanh_quick,
)
from veritrain.runtime.kernels import kernel

Inputs: TypeAlias = NDArray[np.float32]
Outputs: TypeAlias = NDArray[np.int32]

CHUNK = np.uint64(64)  # with 2^-13 of the entries open, 0.8 percent of the chunks are done twice


@jit
def _round(interval: Interval) -> Any:
    """The fp32 bits that both ends round to, if they do."""
    low, high = np.float32(interval[0]), np.float32(interval[1])
    failed = np.int32(NAN) if low != low else np.int32(UNDECIDED)
    return bits32(low) if low == high else failed


@jit
def by_interval(interval: Any, x: Inputs, factor: Any, out: Outputs, start: int, stop: int) -> int:
    """Entries [start, stop) with the accurate function; returns the number of undecided ones.

    With a factor, results are times it, rounded again, but for the undecided ones.
    """
    undecided = 0
    for i in range(np.uint64(start), np.uint64(stop)):
        bits = _round(interval(np.float64(x[i])))
        undecided += bits == np.int32(UNDECIDED)
        if factor is not None and bits != np.int32(UNDECIDED):
            bits = bits32(np.float32(float32(bits) * factor[i]))
        out[i] = bits
    return undecided


@jit
def _all_decided(quick: Any, x: Inputs, factor: Any, out: Outputs, at: int) -> bool:
    """The same for the `CHUNK` entries from `at` on with a quick function; tells whether it
    decides."""
    open_ = False
    for i in range(CHUNK):
        y, decided = quick(x[at + i])
        value = np.float32(y)
        if factor is not None:
            value = value * factor[at + i]
        out[at + i] = bits32(value)
        open_ |= not decided
    return not open_


@jit
def _by_chunks(
    near: Any,
    quick: Any,
    interval: Any,
    x: Inputs,
    factor: Any,
    out: Outputs,
    start: int,
    stop: int,
) -> int:
    """`near`, if there is one, is quicker than `quick` in a smaller range."""
    undecided, at, end = 0, np.uint64(start), np.uint64(stop)
    while at + CHUNK <= end:
        decided = False
        if near is not None:
            decided = _all_decided(near, x, factor, out, at)
        if not decided and not _all_decided(quick, x, factor, out, at):
            undecided += by_interval(interval, x, factor, out, at, at + CHUNK)
        at += CHUNK
    return undecided + by_interval(interval, x, factor, out, at, end)


@kernel()
def undecided_places(out: Outputs) -> NDArray[np.int64]:
    """Where `out` is `UNDECIDED`. Most chunks have none, which is seen 64 entries at a time."""
    places = [0 for _ in range(0)]  # so numba learns the type
    for start in range(0, out.size, 64):
        part = out[start : start + 64]
        count = 0
        for i in range(part.size):
            count += part[i] == np.int32(UNDECIDED)
        if count:
            for i in range(part.size):
                if part[i] == np.int32(UNDECIDED):
                    places.append(start + i)
    return np.array(places)


@jit
def exp_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, exp_quick, exp_interval, x, None, out, start, stop)


@jit
def expm1_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, expm1_quick, expm1_interval, x, None, out, start, stop)


@jit
def tanh_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, tanh_quick, tanh_interval, x, None, out, start, stop)


@jit
def sigmoid_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, sigmoid_quick, sigmoid_interval, x, None, out, start, stop)


@jit
def silu_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, silu_quick, silu_interval, x, None, out, start, stop)


@jit
def erf_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(erf_interval, x, None, out, start, stop)


@jit
def erfinv_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(erfinv_interval, x, None, out, start, stop)


@jit
def gelu_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(gelu_near, gelu_quick, gelu_interval, x, None, out, start, stop)


@jit
def gelu_tanh_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, gelu_tanh_quick, gelu_tanh_interval, x, None, out, start, stop)


@jit
def softplus_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, softplus_quick, softplus_interval, x, None, out, start, stop)


@jit
def silu_grad_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, silu_grad_quick, silu_grad_interval, x, None, out, start, stop)


@jit
def gelu_grad_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(
        gelu_grad_near, gelu_grad_quick, gelu_grad_interval, x, None, out, start, stop
    )


@jit
def gelu_tanh_grad_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(
        None, gelu_tanh_grad_quick, gelu_tanh_grad_interval, x, None, out, start, stop
    )


@jit
def log_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, log_quick, log_interval, x, None, out, start, stop)


@jit
def log1p_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(log1p_interval, x, None, out, start, stop)


@jit
def sin_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(sin_interval, x, None, out, start, stop)


@jit
def cos_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(cos_interval, x, None, out, start, stop)


@jit
def sin_two_pi_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(sin_two_pi_interval, x, None, out, start, stop)


@jit
def cos_two_pi_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(cos_two_pi_interval, x, None, out, start, stop)


@jit
def sqrt_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return by_interval(sqrt_interval, x, None, out, start, stop)


@jit
def rsqrt_loop(x: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, rsqrt_quick, rsqrt_interval, x, None, out, start, stop)


@jit
def power_loop(x: Inputs, y: Inputs, out: Outputs, start: int, stop: int) -> int:
    x, y, out, undecided = x[start:stop], y[start:stop], out[start:stop], 0
    for i in range(x.size):
        bits = _round(power_interval(np.float64(x[i]), np.float64(y[i])))
        undecided += bits == np.int32(UNDECIDED)
        out[i] = bits
    return undecided


@jit
def silu_grad_times_loop(x: Inputs, factor: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(None, silu_grad_quick, silu_grad_interval, x, factor, out, start, stop)


@jit
def gelu_grad_times_loop(x: Inputs, factor: Inputs, out: Outputs, start: int, stop: int) -> int:
    return _by_chunks(
        gelu_grad_near, gelu_grad_quick, gelu_grad_interval, x, factor, out, start, stop
    )


@jit
def gelu_tanh_grad_times_loop(
    x: Inputs, factor: Inputs, out: Outputs, start: int, stop: int
) -> int:
    return _by_chunks(
        None, gelu_tanh_grad_quick, gelu_tanh_grad_interval, x, factor, out, start, stop
    )
