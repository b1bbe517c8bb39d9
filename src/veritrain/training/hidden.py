"""Where a job remembers something that is not state: names for the message, not a proof.

A step that differs when it is done again depends on something outside of the state. The cause is
looked for in the job's data set and in the global variables and closures of its functions: these
are the values that changed while the job ran. `attributes` does the same for modules and optimiser.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from veritrain.encoding import digest
from veritrain.job.job import Job
from veritrain.job.loading.installed import is_installed
from veritrain.training.attributes import NOT_PLAIN, plain_form

_DEPTH = 4  # objects in objects, functions that call functions
_WIDTH = 64  # attributes of one object
_TENSOR_BYTES = 1 << 24  # of a tensor that is hashed; larger ones go by their version
_COUNTERS = (itertools.count, itertools.cycle, enumerate, range)


@dataclass(frozen=True, kw_only=True)
class Memory:
    """The values that a job's functions and data set can reach, by name: "dataset.rng", "calls"."""

    _forms: Mapping[str, object]

    @classmethod
    def of(cls, job: Job, dataset: object) -> Memory:
        """Note them as they are now."""
        found: dict[str, object] = {}
        seen: set[int] = set()
        for name, value in _roots(job, dataset):
            _walk(name, value, found, seen, _DEPTH)
        return cls(_forms=found)

    def changed(self, after: Memory) -> list[str]:
        """Names of the values that are others in `after`."""
        names = self._forms.keys() & after._forms.keys()
        return sorted(name for name in names if self._forms[name] != after._forms[name])


def _roots(job: Job, dataset: object) -> Iterator[tuple[str, object]]:
    yield "dataset", dataset
    for field in ("loss", "model", "optimizer", "scheduler", "before_step", "collate", "dataset"):
        yield field, getattr(job, field)


def _walk(name: str, value: object, found: dict[str, object], seen: set[int], depth: int) -> None:
    """Note a value, or what it is made of."""
    form = _form(value)
    if form is not None:
        found[name] = form
        return
    if depth == 0 or id(value) in seen or isinstance(value, ModuleType | type):
        return
    seen.add(id(value))
    for inner, part in itertools.islice(_parts(name, value), _WIDTH):
        _walk(inner, part, found, seen, depth - 1)


def _parts(name: str, value: Any) -> Iterator[tuple[str, object]]:
    """What a function uses by name, or the attributes of an object."""
    if isinstance(value, MethodType):
        yield name, value.__self__
        yield name, value.__func__
    elif isinstance(value, functools.partial):
        yield from ((name, part) for part in (value.func, *value.args, *value.keywords.values()))
    elif isinstance(value, FunctionType):
        function = inspect.unwrap(value)
        if isinstance(function, FunctionType) and not is_installed(
            Path(function.__code__.co_filename)
        ):
            names = set(_names(function.__code__)) & function.__globals__.keys()
            yield from ((other, function.__globals__[other]) for other in sorted(names))
            for key, cell in zip(
                function.__code__.co_freevars, function.__closure__ or (), strict=True
            ):
                yield from _content(key, cell)
    elif isinstance(value, list | tuple):
        yield from ((f"{name}[{i}]", part) for i, part in enumerate(cast("list[Any]", value)))
    elif isinstance(value, dict):
        yield from ((f"{name}[{key!r}]", part) for key, part in value.items())
    else:
        own: dict[str, object] = getattr(value, "__dict__", {})
        hidden = vars(nn.Module()).keys() if isinstance(value, nn.Module) else ()
        yield from ((f"{name}.{key}", part) for key, part in own.items() if key not in hidden)
        if isinstance(value, nn.Module):
            yield from ((f"{name}.{key}", part) for key, part in value.named_buffers())
            yield from ((f"{name}.{key}", part) for key, part in value.named_parameters())


def _content(name: str, cell: Any) -> Iterator[tuple[str, object]]:
    try:
        yield name, cell.cell_contents
    except ValueError:  # empty so far
        return


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _form(value: object) -> object:
    """What is another where the value is another; None for a value that is made of others."""
    if isinstance(value, np.random.Generator):
        return repr(value.bit_generator.state)
    if isinstance(value, np.random.RandomState):
        return repr(value.get_state())
    if isinstance(value, random.Random):
        return hash(value.getstate())
    if isinstance(value, torch._C.Generator):  # pyright: ignore[reportPrivateUsage]
        return value.get_state().numpy().tobytes()
    if isinstance(value, Tensor):
        return _tensor_form(value)
    if isinstance(value, np.ndarray):
        is_plain = value.dtype.kind in "biufc" and value.nbytes <= _TENSOR_BYTES
        return digest("tensor", value.tobytes()) if is_plain else (value.shape, value.dtype.str)
    if isinstance(value, _COUNTERS):
        return repr(value)
    form = plain_form(value)
    return None if form is NOT_PLAIN else form


def _tensor_form(tensor: Tensor) -> object:
    small = tensor.numel() * tensor.element_size() <= _TENSOR_BYTES
    if small and tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_nested:
        row = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        return digest("tensor", row.numpy().tobytes())
    return tensor._version, tuple(tensor.shape)
