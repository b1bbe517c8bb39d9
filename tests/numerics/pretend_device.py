"""A device that is not there: tensors that lie on "meta" as far as PyTorch can see, with values on
the CPU.

It stands in for a GPU where there is none. What it shows: that every operator of the rules reaches
the device's twins, that no rule mixes places or looks into a device tensor's memory, and that the
gate admits all that the rules run. It computes as CUDA's kernels are known to compute where these
differ from the CPU's (`QUIRKS`), so that a rule that leans on the CPU's way gives other bits. It
cannot show that a CUDA kernel does what its sources say; tests/numerics/test_cuda.py does that
where there is one.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from veritrain.job import step

aten = torch.ops.aten
PLACE = torch.device("meta")


def _of_values(name: str):
    def read(self):
        with torch._C.DisableTorchFunction():  # `Moving` would move the values back
            return getattr(self.values, name)()

    return read


class Elsewhere(Tensor):
    """A tensor of the pretended device; `values` is on the CPU."""

    @staticmethod
    def __new__(cls, values: Tensor):
        return Tensor._make_wrapper_subclass(
            cls, values.size(), strides=values.stride(), storage_offset=values.storage_offset(),
            dtype=values.dtype, device=PLACE,
        )  # fmt: skip

    def __init__(self, values: Tensor) -> None:
        self.values = values

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})

    # PyTorch refuses these on "meta" before any operator is run.
    item, tolist = (_of_values(name) for name in ("item", "tolist"))
    __int__, __float__, __bool__, __index__ = (
        _of_values(f"__{name}__") for name in ("int", "float", "bool", "index")
    )


def here(x: Tensor) -> Tensor:
    """The tensor on the CPU, whichever device it is on."""
    return x.values if isinstance(x, Elsewhere) else x.cpu()


class _Making(TorchFunctionMode):
    """torch.tensor copies to its device out of sight of the dispatch modes."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.tensor and kwargs.get("device") == PLACE:
            return Elsewhere(torch.tensor(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)


class Moving(TorchFunctionMode):
    """Moves the CPU tensors among a function's arguments: a test's constants follow its inputs."""

    def __init__(self, place: torch.device) -> None:
        super().__init__()
        self.place = place

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.to, Tensor.cpu) or getattr(func, "__name__", "") in (
            "__get__",
            "__set__",
        ):
            return func(*args, **(kwargs or {}))

        def move(x):
            return x.to(self.place) if x.is_cpu else x

        return func(*tree_map_only(Tensor, move, args), **tree_map_only(Tensor, move, kwargs or {}))


class _Creating(TorchDispatchMode):
    """Makes new tensors there, and moves tensors there."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    flat = tree_flatten((args, kwargs))[0]
    there = any(isinstance(x, Elsewhere) for x in flat)
    target = kwargs.get("device")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
        there = torch.device(target) == PLACE
    elif there:
        _require_one_place(func, flat)
    if func in (aten._local_scalar_dense.default, aten.equal.default):
        there = False
    before = {id(x.values): x for x in flat if isinstance(x, Elsewhere)}
    if there and func in QUIRKS:
        result = QUIRKS[func](*args, **kwargs)
    else:
        result = func(*tree_map(_inside, args), **tree_map(_inside, kwargs))
    if func is aten.copy_.default:
        return args[0]
    if not there:
        return result
    return tree_map(
        lambda x: before.get(id(x), _outside(x)) if isinstance(x, Tensor) else x, result
    )


def _inside(x):
    return x.values if isinstance(x, Elsewhere) else x


def _outside(x: Tensor) -> Tensor:
    return x if isinstance(x, Elsewhere) else Elsewhere(x)


_MIXING = (aten.copy_.default, aten.index.Tensor)


def _require_one_place(func, flat) -> None:
    """As CUDA: a CPU tensor may take part if it is a single number."""
    here = [x for x in flat if isinstance(x, Tensor) and not isinstance(x, Elsewhere)]
    if any(x.is_meta for x in here):
        raise AssertionError(
            f"{func}: a tensor was made on the device out of sight, without values"
        )
    if func not in _MIXING and any(x.ndim for x in here):
        raise RuntimeError(f"{func}: expected all tensors to be on the same device")


# What CUDA's kernels do otherwise than the CPU's.


def _divide(x, y):
    """By a number, or a CPU tensor that stands for one: times its reciprocal."""
    if isinstance(y, Elsewhere) or (isinstance(y, Tensor) and y.ndim):
        return torch.div(_inside(x), _inside(y))
    dtype = torch.result_type(_inside(x), y)
    return _inside(x) * (1 / torch.as_tensor(y, dtype=torch.float64)).to(dtype)


def _contracted(x, y, alpha=1):
    """Adds a product without rounding it first."""
    if alpha in (1, -1):
        return torch.add(_inside(x), _inside(y), alpha=alpha)
    factor = torch.tensor(alpha, dtype=torch.float32).double()
    return (_inside(x).double() + _inside(y).double() * factor).float()


def _positive_zero(x):
    """Of two zeros the positive one is the larger."""
    return torch.relu(_inside(x)) + 0.0


def _first_stays(x, dim, index, source):
    """Of several values for one place any may stay."""
    x, index, source = _inside(x), _inside(index), _inside(source)
    window = source[tuple(slice(0, size) for size in index.shape)]
    return torch.scatter(x, dim, index.flip(dim), window.flip(dim))


QUIRKS = {
    aten.div.Tensor: _divide,
    aten.div.Scalar: _divide,
    aten.add.Tensor: _contracted,
    aten.sub.Tensor: lambda x, y, alpha=1: _contracted(x, y, -alpha),
    aten.relu.default: _positive_zero,
    aten.scatter.src: _first_stays,
}


@contextmanager
def pretended():
    """Let "meta" name the pretended device."""
    find, optimizer = step.find_device, sys.modules["torch.optim.optimizer"]
    supported = optimizer._get_fused_kernels_supported_devices()
    with (
        patch.object(step, "find_device", lambda name: PLACE if name == "meta" else find(name)),
        patch.object(
            optimizer, "_get_fused_kernels_supported_devices", lambda: [*supported, "meta"]
        ),
        # a parameter's memory cannot become another class's in place, as it can become a GPU's
        patch.object(torch.__future__, "_swap_module_params_on_conversion", True),
        _Creating(),
        _Making(),
    ):
        yield PLACE
