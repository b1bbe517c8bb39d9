"""The state: named tensors that hold everything that carries over from one step to the next.

    model/<name>                 every parameter and buffer, also non-persistent buffers; tied
                                 parameters appear under each of their names
    optimizer/<parameter>/<key>  the optimiser's tensors of one parameter
    groups/<index>/<key>         hyper-parameters that are tensors (a learning rate, for example)
    optimizer/hyper              all other hyper-parameters and plain optimiser state
    scheduler/state              the scheduler's state, where there is a scheduler

The last two are canonical CBOR in a uint8 tensor. Attributes of modules that are neither
parameters nor buffers are not state: a job must not carry information in them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from veritrain.encoding import DIGEST_BYTES, Value, decode, encode
from veritrain.errors import JobError, NumericsError, TranscriptError, UsageError
from veritrain.transcript import TensorEntry, tensors
from veritrain.transcript import fields as check
from veritrain.transcript.fields import shown

if TYPE_CHECKING:
    from veritrain.job.step import Program

HYPER = "optimizer/hyper"
SCHEDULER = "scheduler/state"
_TEXT_GROWTH = 64  # of the plain values of optimiser and scheduler, over those of step 0
_TEXT_SPARE = 2**20
# Compiled updates write to these without a look at their sizes: a shorter one is memory of others.
_LIKE_PARAMETER = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum"}


def capture(program: Program) -> dict[str, Tensor]:
    """The program's state: references to its tensors (detached, not copied), sorted by name.

    Raises:
        JobError: something that carries over between steps cannot be written down.
    """
    state = {f"model/{name}": tensor.detach() for name, tensor in _model_tensors(program.model)}
    names = _parameter_names(program.model)
    groups: list[Value] = []
    for index, group in enumerate(program.optimizer.param_groups):
        plain, tensors = _split(group, f"optimizer group {index}", skip="params")
        groups.append([plain, [_name_of(parameter, names) for parameter in group["params"]]])
        state |= {f"groups/{index}/{key}": tensor for key, tensor in tensors.items()}
    carried: dict[str, Value] = {}
    for parameter, values in program.optimizer.state.items():
        _require_state_of_tensor(parameter, values)
        name = _name_of(parameter, names)
        plain, tensors = _split(values, f"optimizer state of {name}")
        if plain:
            carried[name] = plain
        state |= {f"optimizer/{name}/{key}": tensor for key, tensor in tensors.items()}
    state[HYPER] = _to_tensor({"groups": groups, "state": carried})
    if program.scheduler is not None:
        state[SCHEDULER] = _to_tensor(_plain(program.scheduler.state_dict(), "scheduler"))
    return dict(sorted(state.items()))


def restore(program: Program, state: Mapping[str, Tensor]) -> None:
    """Put a stored state into a freshly built program; parameters and buffers keep their identity.

    Raises:
        TranscriptError: a tensor is missing, unknown, or has the wrong shape or dtype.
    """
    unused = set(state)
    _restore_model(program.model, state, unused)
    hyper = _from_tensor(state, HYPER, unused)
    _restore_groups(program, state, unused, hyper)
    _restore_optimizer(program, state, unused, hyper)
    if program.scheduler is not None:
        _restore_scheduler(program, _from_tensor(state, SCHEDULER, unused))
    if unused:
        raise TranscriptError(shown(min(unused)), "the job's state has no such tensor")


def require_fit(program: Program, entries: Iterable[TensorEntry]) -> None:
    """Check, before memory is taken for it, that a stored state may be one of this program.

    Model and groups: names, dtypes and shapes are the program's own. Optimisers make their tensors
    in the first step, so only those of PyTorch have a bound: no tensor is larger than its
    parameter, and those that its compiled updates take have the parameter's shape.

    Raises:
        TranscriptError: names the first tensor that does not fit, expected and got.
    """
    own = capture(program)
    parameters = dict(program.model.named_parameters())
    found = {entry.name: entry for entry in entries}
    for name, entry in found.items():
        fresh = own.get(name)
        kind, _, rest = name.partition("/")
        parameter, _, key = rest.rpartition("/")
        if name in (HYPER, SCHEDULER) and fresh is not None:
            limit = _TEXT_GROWTH * fresh.numel() + _TEXT_SPARE
            _require_at_most(entry, limit)
        elif kind == "optimizer" and parameter in parameters:
            if _is_pytorchs(program.optimizer):
                _require_like(name, key, entry.shape, parameters[parameter])
                _require_at_most(entry, max(1, parameters[parameter].numel()))
        elif fresh is None:
            raise TranscriptError(shown(name), "the job's state has no such tensor")
        else:
            _require_entry(fresh, entry)
    for name in own.keys() - found.keys():
        if not name.startswith("optimizer/"):
            raise TranscriptError(name, "is missing from the stored state")


def _require_at_most(entry: TensorEntry, limit: int) -> None:
    count = math.prod(entry.shape)
    if count > limit:
        raise TranscriptError(shown(entry.name), f"expected at most {limit} values, got {count}")


def _require_entry(own: Tensor, entry: TensorEntry) -> None:
    dtype, shape = tensors.dtype_name(own), tuple(own.shape)
    if (dtype, shape) != (entry.dtype, entry.shape):
        raise TranscriptError(
            entry.name,
            f"expected {dtype} of shape {shape}, got {entry.dtype} of shape {entry.shape}",
        )


def _is_pytorchs(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the updates are computed by one of PyTorch's optimisers, maybe under another name."""
    return type(optimizer).step.__module__.startswith("torch.optim.")


def _require_like(name: str, key: str, shape: Iterable[int], parameter: Tensor) -> None:
    """Check the shape of a tensor that one of PyTorch's optimisers keeps of a parameter."""
    got, expected = tuple(shape), tuple(parameter.shape)
    if key == "step" and math.prod(got) != 1:
        raise TranscriptError(shown(name), f"expected one number, got shape {got}")
    if key in _LIKE_PARAMETER and got != expected:
        raise TranscriptError(shown(name), f"expected shape {expected}, got shape {got}")


def refuse_nan(state: Mapping[str, Tensor], step: int) -> None:
    """Raise where a tensor holds a NaN: nothing that follows could be checked.

    Raises:
        NumericsError: names the step and the tensor.
    """
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        # PyTorch has no minimum of numbers of 8 bits.
        wide = tensor.half() if tensor.dtype.itemsize == 1 else tensor
        # The minimum of a tensor that holds a NaN is NaN: one pass and no temporary.
        if bool(wide.amin().isnan()):
            raise NumericsError(f"step {step}: {name} holds a NaN")


@dataclass(frozen=True, kw_only=True)
class StateForm:
    """What of a state is the same after every step, or it could not be put into a program that was
    just built: the model's tensors and those of the groups, and which parameters the groups
        have."""

    tensors: Mapping[str, tuple[torch.dtype, torch.Size]]
    groups: tuple[tuple[str, ...], ...]

    @classmethod
    def of(cls, program: Program) -> StateForm:
        """The form of the program's state as it is now.

        Raises:
            JobError: as `capture`.
        """
        names = _parameter_names(program.model)
        tensors = {f"model/{name}": tensor for name, tensor in _model_tensors(program.model)}
        members: list[tuple[str, ...]] = []
        for index, group in enumerate(program.optimizer.param_groups):
            members.append(tuple(_name_of(parameter, names) for parameter in group["params"]))
            for key, value in group.items():
                if isinstance(value, Tensor):
                    tensors[f"groups/{index}/{key}"] = value
        forms = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
        return cls(tensors=forms, groups=tuple(members))

    def require_kept(self, after: StateForm, step: int) -> None:
        """Check that a step kept the form.

        Raises:
            JobError: names the first tensor or group that is another, and what to do.
        """
        if len(after.groups) > len(self.groups):
            raise JobError(
                f"optimizer: group {len(self.groups)} was added in step {step}; give the optimiser "
                "all groups when it is built, and freeze parameters until their step by before_step"
            )
        for index, (before, now) in enumerate(zip(self.groups, after.groups, strict=False)):
            if before != now:
                raise JobError(f"optimizer: group {index} has other parameters after step {step}")
        if len(after.groups) < len(self.groups):
            raise JobError(f"optimizer: a parameter group vanished in step {step}")
        for name in sorted(self.tensors.keys() | after.tensors.keys()):
            what = f"{name.partition('/')[0].removesuffix('s')}: {name}"
            if name not in after.tensors:
                raise JobError(
                    f"{what} vanished in step {step}; keep what the model was built with"
                )
            if name not in self.tensors:
                raise JobError(f"{what} appeared in step {step}; register it when it is built")
            if self.tensors[name] != after.tensors[name]:
                old, new = (
                    _dtype_and_shape(self.tensors[name]),
                    _dtype_and_shape(after.tensors[name]),
                )
                raise JobError(
                    f"{what} was {old} and is {new} after step {step}; build it as large as it gets"
                )


def _dtype_and_shape(form: tuple[torch.dtype, torch.Size]) -> str:
    return f"{form[0]}{list(form[1])}".removeprefix("torch.")


def _model_tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _parameter_names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _name_of(parameter: Tensor, names: Mapping[int, str]) -> str:
    name = names.get(id(parameter))
    if name is None:
        raise JobError(
            f"optimizer: holds a tensor of shape {tuple(parameter.shape)} that is not a parameter "
            "of the model; register it in the model"
        )
    return name


def _require_state_of_tensor(key: object, values: object) -> None:
    if not isinstance(key, Tensor) or not isinstance(values, Mapping):
        name = "a parameter" if isinstance(key, Tensor) else repr(key)
        raise JobError(
            f"optimizer: keeps a {type(values).__name__} as state of {name}; "
            "keep a dict for each parameter, or values in its parameter groups"
        )


def _split(
    values: Mapping[str, Any], what: str, skip: str = ""
) -> tuple[dict[str, Value], dict[str, Tensor]]:
    """Part values into plain ones, encoded, and tensors."""
    plain: dict[str, Value] = {}
    tensors: dict[str, Tensor] = {}
    for key, value in values.items():
        if isinstance(value, Tensor):
            tensors[key] = value.detach()
        elif key != skip:
            plain[key] = _plain(value, f"{what}, {key!r}")
    return plain, tensors


def _restore_model(model: nn.Module, state: Mapping[str, Tensor], unused: set[str]) -> None:
    filled: dict[int, Tensor] = {}
    for name, tensor in _model_tensors(model):
        stored = _take(state, f"model/{name}", unused)
        _require_alike(f"model/{name}", tensor, stored)
        first = filled.setdefault(id(tensor), stored)
        if first is not stored and not _same_bytes(first, stored):
            raise TranscriptError(f"model/{name}", "differs from the parameter it is tied to")
        with torch.no_grad():
            tensor.copy_(stored)


def _restore_groups(
    program: Program, state: Mapping[str, Tensor], unused: set[str], hyper: dict[str, Any]
) -> None:
    names = _parameter_names(program.model)
    stored = hyper.get("groups")
    groups = program.optimizer.param_groups
    if not isinstance(stored, list) or len(stored) != len(groups):
        raise TranscriptError(HYPER, f"expected {len(groups)} parameter groups")
    for index, (group, entry) in enumerate(zip(groups, stored, strict=True)):
        members = [names.get(id(parameter)) for parameter in group["params"]]
        plain, tensors = _split(group, f"group {index}", skip="params")
        if not isinstance(entry, list) or len(entry) != 2 or entry[1] != members:
            raise TranscriptError(HYPER, f"group {index} does not hold the job's parameters")
        values = entry[0]
        if not isinstance(values, dict) or values.keys() != plain.keys():
            raise TranscriptError(HYPER, f"group {index}: expected the keys {sorted(plain)}")
        group.update({key: _unplain(value, HYPER) for key, value in values.items()})
        for key, tensor in tensors.items():
            stored_tensor = _take(state, f"groups/{index}/{key}", unused)
            _require_alike(f"groups/{index}/{key}", tensor, stored_tensor)
            group[key].detach().copy_(stored_tensor)


def _restore_optimizer(
    program: Program, state: Mapping[str, Tensor], unused: set[str], hyper: dict[str, Any]
) -> None:
    """Optimisers make their tensors in the first step, so names and shapes come from the state;
    a leaf's digest, not this function, says whether they are right."""
    parameters = dict(program.model.named_parameters())
    carried = hyper.get("state")
    if not isinstance(carried, dict):
        raise TranscriptError(HYPER, "expected a map of plain optimiser state")
    program.optimizer.state.clear()
    for name, values in carried.items():
        if name not in parameters or not isinstance(values, dict):
            raise TranscriptError(HYPER, f"unknown parameter {shown(name)}")
        own = program.optimizer.state[parameters[name]]
        own.update({key: _unplain(value, HYPER) for key, value in values.items()})
    for full in sorted(unused):
        name, _, key = full.removeprefix("optimizer/").rpartition("/")
        if full.startswith("optimizer/") and name in parameters:
            stored = _take(state, full, unused)
            parameter = parameters[name]
            if _is_pytorchs(program.optimizer):
                _require_like(full, key, stored.shape, parameter)
            # C order, as a state is stored: traces are of memory
            own = stored.clone(memory_format=torch.contiguous_format).to(parameter.device)
            program.optimizer.state[parameter][key] = own


def _restore_scheduler(program: Program, stored: dict[str, Any]) -> None:
    if program.scheduler is None:
        return
    fresh = program.scheduler.state_dict()
    values = _unplain(stored, SCHEDULER)
    if not isinstance(values, dict) or values.keys() != fresh.keys():
        raise TranscriptError(SCHEDULER, f"expected the keys {sorted(fresh)}")
    try:
        program.scheduler.load_state_dict(values)
    except Exception as error:  # the values are someone else's, the scheduler may be anyone's
        raise TranscriptError(SCHEDULER, "does not fit the job's scheduler") from error


def _take(state: Mapping[str, Tensor], name: str, unused: set[str]) -> Tensor:
    if name not in state:
        raise TranscriptError(name, "is missing from the stored state")
    unused.discard(name)
    return state[name]


def _require_alike(name: str, expected: Tensor, got: Tensor) -> None:
    if expected.shape != got.shape:
        raise TranscriptError(
            name, f"expected shape {tuple(expected.shape)}, got {tuple(got.shape)}"
        )
    if expected.dtype != got.dtype:
        raise TranscriptError(name, f"expected dtype {expected.dtype}, got {got.dtype}")


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return torch.equal(
        a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8)
    )


def _to_tensor(value: Value) -> Tensor:
    try:
        return torch.frombuffer(bytearray(encode(value)), dtype=torch.uint8)
    except ValueError as error:
        raise JobError(f"hyper-parameters or scheduler state: {error}") from error


def _from_tensor(state: Mapping[str, Tensor], name: str, unused: set[str]) -> dict[str, Any]:
    tensor = _take(state, name, unused)
    if tensor.dtype != torch.uint8 or tensor.dim() != 1:
        raise TranscriptError(name, f"expected uint8 bytes, got {tensor.dtype} {tensor.shape}")
    value = decode(tensor.numpy().tobytes(), where=name)
    if not isinstance(value, dict):
        raise TranscriptError(name, "expected a map")
    return value


# Plain values. CBOR has one kind of list and text keys; tags keep what Python tells apart.
_TUPLE, _MAP, _COUNTER, _TENSOR = "tuple", "map", "counter", "tensor"


def _plain(value: object, what: str) -> Value:
    """Encode a hyper-parameter or a piece of scheduler state.

    Raises:
        JobError: its type has no canonical form.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, list):
        return [_plain(item, what) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_plain(item, what) for item in value]}
    if isinstance(value, dict):
        pairs: list[Value] = [
            [_plain(key, what), _plain(item, what)] for key, item in value.items()
        ]
        tag = _COUNTER if isinstance(value, Counter) else _MAP
        return {tag: sorted(pairs, key=encode)}
    if isinstance(value, Tensor):
        entry = tensors.entry(what, value)
        return {_TENSOR: [entry.dtype, list(entry.shape), bytes(tensors.content(value))]}
    raise JobError(
        f"{what}: a value of type {type(value).__name__} cannot be part of a committed state; "
        "use numbers, text, lists, tuples, dicts or tensors"
    )


def _unplain(value: Value, where: str) -> Any:
    """Decode what `_plain` wrote; someone else may have written these bytes."""
    if isinstance(value, list):
        return [_unplain(item, where) for item in value]
    if isinstance(value, bytes):
        raise TranscriptError(where, "a plain value is bytes")
    if not isinstance(value, dict):
        return value
    tag, items = next(iter(value.items()), ("", None))
    if len(value) != 1 or not isinstance(items, list):
        raise TranscriptError(where, "a plain value is not one tag with a list")
    if tag == _TENSOR:
        return _plain_tensor(items, where)
    decoded = [_unplain(item, where) for item in items]
    if tag == _TUPLE:
        return tuple(decoded)
    if tag not in (_MAP, _COUNTER):
        raise TranscriptError(where, f"a plain value has the unknown tag {shown(tag)}")
    if any(not isinstance(pair, list) or len(pair) != 2 for pair in decoded):
        raise TranscriptError(where, "a map of a plain value holds something else than pairs")
    try:
        check.check_hashes("map of a plain value", [key for key, _ in decoded])
    except UsageError as error:
        raise TranscriptError(where, str(error)) from error
    pairs: dict[Any, Any] = dict(decoded)
    if len(pairs) != len(decoded):
        raise TranscriptError(where, "a map of a plain value has a key twice")
    return Counter(pairs) if tag == _COUNTER else pairs


def _plain_tensor(items: list[Value], where: str) -> Tensor:
    if len(items) != 3:
        raise TranscriptError(where, f"a plain tensor has {len(items)} parts, expected 3")
    dtype, shape, content = items
    if not (isinstance(dtype, str) and isinstance(shape, list) and isinstance(content, bytes)):
        raise TranscriptError(where, "a plain tensor is not dtype, shape and bytes")
    try:
        entry = TensorEntry(
            name="value",
            dtype=dtype,
            shape=tuple(cast("list[int]", shape)),
            digest=bytes(DIGEST_BYTES),
        )
    except UsageError as error:
        raise TranscriptError(where, f"a plain tensor: {error}") from error
    if entry.num_bytes != len(content):  # before anything is allocated
        raise TranscriptError(
            where, f"a plain tensor: expected {entry.num_bytes} bytes, got {len(content)}"
        )
    tensor, into = tensors.empty(entry)
    into[:] = content
    try:
        tensors.require_truth(entry, into)
    except UsageError as error:
        raise TranscriptError(where, f"a plain tensor: {error}") from error
    return tensor
