"""What a program holds beside the tensors of its state: flags and plain attributes.

An audit builds a program anew at every checkpoint, and a built program has these as the job's code
made them. So a run may not depend on one that changed since: a dropout's probability, `training`,
`requires_grad`, a counter in a module. `Attributes` notes them, compares, and puts them back.

Seen are the attributes of modules and optimiser whose values are plain (numbers, text, dtypes, and
lists, tuples, sets and dicts of such), the class of each module, its number of hooks, and the flags
`training` and `requires_grad`. An attribute that holds a tensor or any other object is not
compared: what a module keeps for people to look at (attention weights, for example) would be taken
for hidden state.
"""

from __future__ import annotations

import copy
import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

if TYPE_CHECKING:
    from veritrain.job.step import Program

_PLAIN = (
    bool, int, float, complex, str, bytes, type(None), enum.Enum, np.generic,
    torch.dtype, torch.device, torch.layout, torch.Size, torch.memory_format,
)  # fmt: skip
_SIMPLE = frozenset({bool, int, str, bytes, type(None)})  # equal values of one type are one value
_PARTS = 4096  # of one attribute, lists in lists together
_DEPTH = 5  # lists in lists
_SHOWN_CHARS = 60
_OF_MODULE = frozenset(vars(nn.Module())) - {"training"}
# What PyTorch keeps of an optimiser and its scheduler; the state has what counts of it.
_OF_OPTIMIZER = frozenset(vars(Optimizer([nn.Parameter(torch.zeros(()))], {}))) | {
    "_opt_called", "_need_device_dtype_check_for_fused", "_step_supports_amp_scaling",
}  # fmt: skip
_HOOKS = (
    "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks",
    "_state_dict_hooks", "_load_state_dict_pre_hooks",
)  # fmt: skip
_NOTHING, NOT_PLAIN = object(), object()


@dataclass(frozen=True, kw_only=True)
class Change:
    """One attribute that is not as it was; values as short text."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name} ({self.before}, then {self.after})"


@dataclass(frozen=True, kw_only=True)
class _Attribute:
    """What an attribute holds: `form` is compared, `value` is put back."""

    form: object
    value: Any = field(compare=False)

    @property
    def text(self) -> str:
        """The value for a message."""
        return "nothing" if self.form is _NOTHING else repr(self.value)[:_SHOWN_CHARS]


_MISSING = _Attribute(form=_NOTHING, value=None)
_SHAPE, _FLAG = "class and hooks", "requires_grad"


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """The attributes of one program at one moment. It holds values alone, not the program."""

    _found: Mapping[tuple[str, str], _Attribute]  # by place and name

    @classmethod
    def of(cls, program: Program) -> Attributes:
        """Note the program's attributes as they are now."""
        found: dict[tuple[str, str], _Attribute] = {}
        for place, owner, hidden in _owners(program):
            for key in vars(owner).keys() - hidden:
                value = vars(owner)[key]
                form = plain_form(value)
                found[place, key] = _Attribute(form=form, value=_kept(value, form))
        for place, module in _modules(program):
            shape = (type(module).__qualname__, *(len(vars(module)[key]) for key in _HOOKS))
            found[place, _SHAPE] = _Attribute(form=shape, value=shape)
        for path, parameter in program.model.named_parameters():
            flag = parameter.requires_grad
            found[f"model.{path}", _FLAG] = _Attribute(form=flag, value=flag)
        return cls(_found=found)

    def changes(self, after: Attributes, *, but: str = "") -> list[Change]:
        """What is another in `after`, sorted by name; attributes called `but` are left out."""
        return [
            Change(name=".".join(name), before=self._at(name).text, after=after._at(name).text)
            for name in self._changed(after)
            if name[1] != but
        ]

    def changed(self, after: Attributes) -> Attributes:
        """Those of `after` that are other ones than these."""
        return Attributes(_found={name: after._at(name) for name in self._changed(after)})

    def updated(self, by: Attributes) -> Attributes:
        """These attributes, with those of `by` in the place of their own."""
        return Attributes(_found={**self._found, **by._found})

    def __contains__(self, name: str) -> bool:
        """Is there an attribute of this name ("model.drop.p")?"""
        return name in {".".join(own) for own in self._found}

    def _changed(self, after: Attributes) -> list[tuple[str, str]]:
        names = sorted(self._found.keys() | after._found.keys())
        forms = ((name, self._at(name).form, after._at(name).form) for name in names)
        return [name for name, *both in forms if NOT_PLAIN not in both and both[0] != both[1]]

    def _at(self, name: tuple[str, str]) -> _Attribute:
        return self._found.get(name, _MISSING)

    def put_back(self, program: Program) -> None:
        """Give the program these attributes; those that it has gained since are removed. Modules
        and parameters that are gone stay so."""
        for place, owner, hidden in _owners(program):
            own = vars(owner)
            for key in own.keys() - hidden:
                if (place, key) not in self._found:
                    del own[key]
        self.set_in(program)

    def set_in(self, program: Program) -> None:
        """Give the program these attributes, and leave its others as they are."""
        owners = {place: owner for place, owner, _ in _owners(program)}
        flagged = {f"model.{path}": p for path, p in program.model.named_parameters()}
        for (place, key), attribute in self._found.items():
            if key == _FLAG and place in flagged:
                flagged[place].requires_grad_(attribute.value)
            elif (
                place in owners
                and key not in (_FLAG, _SHAPE)
                and attribute.form not in (NOT_PLAIN, _NOTHING)
            ):
                vars(owners[place])[key] = copy.deepcopy(attribute.value)


def plain_form(value: object) -> object:
    """What is equal for equal plain values only; `NOT_PLAIN` for a value that is not plain, or that
    has too many parts to be looked at in each step."""
    return _form(value, [_PARTS], _DEPTH)


def _form(value: object, left: list[int], depth: int) -> object:
    """See `plain_form`; `left` counts the parts that may still be looked at."""
    if type(value) in _SIMPLE:
        return type(value), value
    if isinstance(value, _PLAIN):
        return type(value).__qualname__, repr(value)
    if depth == 0 or not isinstance(value, list | tuple | set | frozenset | dict):
        return NOT_PLAIN
    left[0] -= len(value)
    if left[0] < 0:
        return NOT_PLAIN
    items = value.items() if isinstance(value, dict) else value
    parts = [_form(item, left, depth - 1) for item in items]
    if NOT_PLAIN in parts:
        return NOT_PLAIN
    ordered = sorted(parts, key=repr) if isinstance(value, set | frozenset) else parts
    return type(value).__qualname__, tuple(ordered)


def _kept(value: Any, form: object) -> Any:
    """A value to put back, which nobody else can change."""
    if form is NOT_PLAIN:
        return None
    return value if isinstance(value, _PLAIN) else copy.deepcopy(value)


def _modules(program: Program) -> Iterator[tuple[str, nn.Module]]:
    """The model's modules with their places: "model" and "model.backbone.drop"."""
    for path, module in program.model.named_modules():
        yield (f"model.{path}" if path else "model"), module


def _owners(program: Program) -> Iterator[tuple[str, Any, frozenset[str]]]:
    """Objects with attributes, their places, and the attributes that do not count."""
    yield from ((place, module, _OF_MODULE) for place, module in _modules(program))
    yield "optimizer", program.optimizer, _OF_OPTIMIZER
