"""What the rules may run on a device: PyTorch kernels whose bits are known, and repairs of the
others.

`DeviceGate` is a dispatch mode below the rules. It sees every operator that a rule runs on a tensor
outside the CPU's memory, and admits it for one of the reasons below, replaces it by operations that
have one, or refuses it. Operators on CPU tensors pass.

Sources: aten/src/ATen/native/cuda of PyTorch 2.13, and CUDA's Programming Guide, chapter
"Floating-Point and IEEE 754 Compliance": single additions, multiplications, divisions, casts and
float64 square roots round to nearest and keep subnormals under the compiler's default flags, which
PyTorch's build does not change.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics.platform.devices import elsewhere
from veritrain.numerics.platform.operator_mode import OperatorMode

aten: Any = torch.ops.aten

# Copies, creates or selects bits; computes at most places, in integers.
MOVES = """
alias as_strided clone contiguous copy detach lift lift_fresh lift_fresh_copy
view _unsafe_view reshape _reshape_alias expand flatten unflatten permute transpose t numpy_T
squeeze
unsqueeze movedim select slice split split_with_sizes unsafe_split unsafe_split_with_sizes chunk
unbind
narrow diagonal diagonal_copy diag_embed cat stack hstack vstack repeat repeat_interleave roll flip
tile unfold
index index_select gather take masked_select masked_fill masked_scatter index_fill where
select_scatter slice_scatter diagonal_scatter select_backward slice_backward diagonal_backward
constant_pad_nd im2col pixel_shuffle pixel_unshuffle
empty empty_like empty_strided empty_permuted new_empty new_empty_strided resize set_
zeros zeros_like new_zeros ones ones_like new_ones full full_like new_full fill zero scalar_tensor
_local_scalar_dense item tril triu nonzero one_hot embedding
_pack_padded_sequence
sym_size sym_stride sym_numel sym_storage_offset record_stream _pin_memory is_pinned
_assert_async _assert_scalar result_type _has_compatible_shallow_copy_type
""".split()

# Compares, or picks one of the values by comparisons. Extrema propagate NaN; `argmax`, `max` along
# an axis and max pooling keep the first of equal values (SharedReduceOps.h: the lower index wins
# ties).
COMPARES = """
eq ne lt le gt ge logical_and logical_or logical_not logical_xor isnan isinf isfinite equal
is_nonzero
is_same_size any all _is_all_true _is_any_true argmax argmin max min amax amin aminmax maximum
minimum fmax fmin
bucketize searchsorted threshold threshold_backward nan_to_num
max_pool2d_with_indices max_pool3d_with_indices
""".split()

# One correctly rounded operation per value; none of these has a second one to fuse with, since
# `add` and `sub` come without alpha.
ROUNDS_ONCE = """
add sub rsub mul neg abs sign sgn reciprocal floor ceil round trunc frac copysign
leaky_relu leaky_relu_backward
""".split()

# Exact on integers, in any order.
INTEGERS = """
sum cumsum pow index_add scatter_add bitwise_and bitwise_or bitwise_not bitwise_xor __and__ __or__
__xor__ bitwise_left_shift bitwise_right_shift __lshift__ __rshift__ clamp clamp_min clamp_max relu
hardtanh div floor_divide remainder fmod
""".split()

# One value for each place: the rules see to it. Added up, exact on integers.
PLACES = ["index_put", "_unsafe_index_put", "index_copy"]

# On float64 that holds integers, exact in any order; its square root is correctly rounded.
FLOAT64 = ["mm", "bmm", "sqrt"]

Way = Callable[..., Any]


class DeviceGate(OperatorMode):
    """Admits, repairs or refuses what is computed on a device.

    Raises (from any operator run under it):
        UnsupportedOperatorError: nothing is known about the operator's bits on a device.
    """

    def operator(self, func: OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `OperatorMode`."""
        values = _flat((*args, *kwargs.values()))
        if not any(isinstance(v, (Tensor, torch.device)) and elsewhere(v) for v in values):
            return func(*args, **kwargs)
        run = way(func)
        if run is None:  # made of other operators, each of which comes here
            with self:
                result = func.decompose(*args, **kwargs)
            if result is NotImplemented:
                raise _unknown(func)
            return result
        return run(*args, **kwargs)


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _flat(value)
        else:
            yield value


@cache
def way(func: OpOverload) -> Way | None:
    """How to run an operator on a device; None where nothing is known about it."""
    name, _, overload = func.name().partition("::")[2].partition(".")
    base = name.removesuffix("_") if not name.endswith("__") else name
    repair = _REPAIRS.get(f"{base}.{overload}")
    if repair is not None:
        return _in_place(repair) if name != base else repair
    known = func.namespace in ("aten", "prim", "profiler")
    if known and (base in _ADMITTED or name in _ADMITTED or func.namespace == "profiler"):
        return func
    if known and base in ROUNDS_ONCE:
        return _without_alpha(func)
    if known and base in PLACES:
        return _without_adding(func)
    if known and base in INTEGERS:
        return _only(func, lambda dtype: not dtype.is_floating_point, "integers")
    if known and base in FLOAT64:
        return _only(func, lambda dtype: dtype == torch.float64, "float64")
    return None


def _unknown(func: OpOverload) -> UnsupportedOperatorError:
    return UnsupportedOperatorError(
        f"operator {func}: its bits on this device are not known to be those of its definition; "
        "train and audit this job on the CPU"
    )


_ADMITTED = frozenset([*MOVES, *COMPARES])


def _in_place(repair: Way) -> Way:
    def run(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return target.copy_(repair(target, *args, **kwargs))

    return run


def _without_alpha(func: OpOverload) -> Way:
    def run(*args: Any, alpha: float = 1, **kwargs: Any) -> Any:
        if alpha != 1 or (len(args) > 2 and func.name().startswith(("aten::add", "aten::sub"))):
            raise UnsupportedOperatorError(f"operator {func} with alpha fuses two operations")
        return func(*args, **kwargs)

    return run


def _without_adding(func: OpOverload) -> Way:
    def run(x: Tensor, indices: Any, values: Any, accumulate: Any = False, **named: Any) -> Any:
        if accumulate is True and x.is_floating_point():
            raise UnsupportedOperatorError(f"operator {func} that adds floats has an order")
        return func(x, indices, values, accumulate, **named)

    return run


def _only(func: OpOverload, allowed: Callable[[torch.dtype], bool], what: str) -> Way:
    def run(*args: Any, **kwargs: Any) -> Any:
        for value in _flat((*args, *kwargs.values())):
            dtype = value.dtype if isinstance(value, Tensor) else value
            dtype = torch.float32 if isinstance(dtype, float) else dtype
            if isinstance(dtype, torch.dtype) and not allowed(dtype):
                raise UnsupportedOperatorError(
                    f"operator {func} on {dtype}: on this device its bits are known for {what} only"
                )
        return func(*args, **kwargs)

    return run


# Repairs. They run below the gate, so they use only what it admits.

_REPAIRS: dict[str, Way] = {}


def _repairs(*names: str) -> Callable[[Way], Way]:
    def register(function: Way) -> Way:
        for name in names:
            _REPAIRS[name] = function
        return function

    return register


@_repairs("div.Tensor", "div.Scalar")
def divide(x: Any, y: Any) -> Tensor:
    """x / y. CUDA's kernel multiplies by the reciprocal of a number, or of a tensor on the CPU that
    stands for one (BinaryDivTrueKernel.cu), which rounds twice: divide by a tensor on the
    device."""
    if isinstance(y, Tensor) and elsewhere(y):
        return torch.div(x, y)
    dtype = torch.result_type(x, y)
    value = y.item() if isinstance(y, Tensor) else y
    return torch.div(x, torch.full((), value, dtype=dtype, device=x.device))


@_repairs("relu.")
def relu(x: Tensor) -> Tensor:
    """x, but 0 below. A maximum in hardware turns -0 into +0, the CPU's comparison keeps it, and
    versions of CUDA's kernel (TensorCompare.cu) differ."""
    return _clamp(x, 0)


@_repairs("clamp.", "clamp_min.")
def _clamp(x: Tensor, min: float | None = None, max: float | None = None) -> Tensor:
    for bound, beyond in ((min, torch.lt), (max, torch.gt)):
        if bound is not None and bound == bound:
            edge = torch.full((), bound, dtype=x.dtype, device=x.device)
            x = torch.where(beyond(x, edge), edge, x)
    unordered = min != min or max != max
    return torch.full_like(x, math.nan) if unordered else x


@_repairs("clamp_max.")
def _clamp_max(x: Tensor, max: float) -> Tensor:
    return _clamp(x, None, max)


@_repairs("hardtanh.")
def _hardtanh(x: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    return _clamp(x, low, high)


@_repairs("_to_copy.")
def _to_copy(x: Tensor, *, non_blocking: bool = False, **options: Any) -> Tensor:
    """Waits for the copy, whatever it is told: who reads too early reads anything."""
    return aten._to_copy(x, **options)


# The rules make the zeros of these +0, and the last one writes one value.
_REPAIRS["clamp.Tensor"] = aten.clamp.Tensor
_REPAIRS["clamp_min.Tensor"] = aten.clamp_min.Tensor
_REPAIRS["clamp_max.Tensor"] = aten.clamp_max.Tensor
_REPAIRS["scatter.value"] = aten.scatter.value


@_repairs("scatter.src")
def scatter(x: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """Of several values for one place the last stays; CUDA's kernel keeps any of them."""
    if not x.ndim:
        return scatter(x[None], 0, index.reshape(-1), source.reshape(-1))[0]
    if not index.numel():
        return x.clone()
    if int(index.min()) < 0 or int(index.max()) >= x.shape[dim]:
        raise IndexError(f"scatter: index outside [0, {x.shape[dim]})")
    places = torch.zeros_like(index)
    stride = 1
    for d in reversed(range(x.ndim)):
        along = index if d == dim % x.ndim else _count_along(index, d)
        places = places + along * stride
        stride *= x.shape[d]
    window = source[tuple(slice(0, size) for size in index.shape)].reshape(-1)
    ordered, order = torch.sort(places.view(-1), stable=True)
    last = torch.cat([ordered[1:] != ordered[:-1], torch.ones_like(ordered[:1], dtype=torch.bool)])
    flat = x.reshape(-1).clone()
    flat[ordered[last]] = window[order[last]]
    return flat.view(x.shape)


def _count_along(index: Tensor, d: int) -> Tensor:
    shape = [-1 if e == d else 1 for e in range(index.ndim)]
    return torch.arange(index.shape[d], device=index.device).view(shape)


@_repairs("sort.", "sort.stable")
def sort(
    x: Tensor, dim: int = -1, descending: bool = False, *, stable: bool | None = None
) -> tuple[Tensor, Tensor]:
    """Stable order by integer keys: radix sorts of floats order NaNs, and in part zeros, by
    sign."""
    keys = _order_keys(x) if x.is_floating_point() else x
    keys = ~keys if descending else keys
    indices = torch.sort(keys, dim=dim, stable=True)[1]
    return (x.gather(dim, indices) if x.ndim else x.clone()), indices


def _order_keys(x: Tensor) -> Tensor:
    """Integers in the order of floats: both zeros alike, NaN above all."""
    word, top = {4: (torch.int32, 0x7FFFFFFF), 8: (torch.int64, (1 << 63) - 1)}[x.element_size()]
    bits = torch.where(x == 0, 0.0, x).view(word)
    return torch.where(x.isnan(), top, torch.where(bits < 0, bits ^ top, bits))


def _register_made_on_cpu(name: str, overload: str) -> None:
    """Values are computed by the CPU's kernel and copied."""
    func = getattr(getattr(aten, name), overload or "default")

    @_repairs(f"{name}.{overload}")
    def _(*args: Any, device: Any = None, **options: Any) -> Tensor:
        return func(*args, **options, device="cpu").to(device)


for _name, _overload in (
    ("arange", ""), ("arange", "start"), ("arange", "start_step"), ("linspace", ""), ("eye", ""),
    ("eye", "m"), ("tril_indices", ""), ("triu_indices", ""),
):  # fmt: skip
    _register_made_on_cpu(_name, _overload)


@_repairs("bincount.")
def _bincount(x: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """Integers, added in any order."""
    if weights is not None:
        raise _unknown(aten.bincount.default)
    size = max(minlength, int(x.max()) + 1 if x.numel() else 0)
    return torch.zeros(size, dtype=torch.int64, device=x.device).index_add(
        0, x.long(), torch.ones_like(x, dtype=torch.int64)
    )
