"""One operator, computed again from its operands: the referee's last word.

The call runs under the job's numerics with the same watcher that makes traces, so that what comes out is the
part of an entry that a trace would have.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch._ops import OpOverload

from veritrain.encoding import DIGEST_BYTES, Value
from veritrain.errors import InconclusiveError, TranscriptError, VerificationError
from veritrain.numerics.keys import generators
from veritrain.numerics.logged.rounding import Following
from veritrain.numerics.profile import Exact, resolve
from veritrain.numerics.rules import lookup
from veritrain.numerics.watched import Watched
from veritrain.replay.trace import calls
from veritrain.replay.trace.arithmetic import Arithmetic
from veritrain.replay.trace.bodies import rows
from veritrain.replay.trace.cells import View, fill
from veritrain.replay.trace.recorder import Origins, Recorder
from veritrain.replay.trace.shapes import require_affordable
from veritrain.replay.trace.tiles import Tile, clipped
from veritrain.transcript.records import TensorEntry
from veritrain.transcript.slices import Opened
from veritrain.transcript.tensors import entry

_OPERATOR = re.compile(r"aten\.([A-Za-z0-9_]{1,80})\.([A-Za-z0-9_]{1,80})")

_MOST_RESERVED = 1 << 34  # bytes of a cell of which parts are opened; the others are never touched
Contents = Mapping[int, bytes]  # by cell


def recompute(
    arithmetic: Arithmetic,
    step: int,
    body: Mapping[str, Value],
    contents: Contents,
    log: bytes | None,
) -> dict[str, Value]:
    """What an operator's entry says after its operator ran, or that it is refused.

    Args:
        arithmetic: of the run's job.
        step: of the trace.
        body: of the entry; its structure and reads are agreed.
        contents: of the cells that it reads.
        log: the step's rounding log.

    Raises:
        InconclusiveError: this machine cannot say.
        ValueError: the entry's call has no meaning.
    """
    plain = _definite(arithmetic)
    storages = {cell: _storage(data) for cell, data in contents.items()}
    following = cast("Following | None", plain.following(arithmetic.thresholds, log))
    position = cast("int | None", body["log"])
    if following is not None and position is not None:
        following.seek(position)
    recorder = Recorder(bytes(DIGEST_BYTES), Origins({}, ()), settles=True, log=following)
    for cell, _, last, found in rows(body, "reads"):
        recorder.know(cell, _whole(storages[cell]), last, found)
    recorder.begin_at(cast(int, body["cells"]))
    watched = Watched(plain, recorder)
    args, kwargs = _arguments(body, storages)
    func = None if body["operator"] == calls.SETTLE else operator_of(body)
    if func is not None:
        require_affordable(func, args, kwargs)
    with (
        watched.active(seed=arithmetic.seed, purpose="step", step=step, rounding=following),
        generators.resumed(cast("generators.State", body["draw"])),
    ):
        try:
            if func is None:
                watched.round_state(args)
            else:
                func(*args, **kwargs)
        except (TranscriptError, VerificationError):
            pass  # the entry says so
    return recorder.last_body()


def recompute_tile(
    arithmetic: Arithmetic,
    step: int,
    body: Mapping[str, Value],
    tile: Tile,
    opened: Mapping[int, Opened],
) -> bytes:
    """Bytes of a tile, from the opened parts of its operands.

    Raises:
        InconclusiveError: this machine cannot say.
        VerificationError: a part is not opened.
        ValueError: the entry's call has no meaning.
    """
    plain = _definite(arithmetic)
    func = operator_of(body)
    named = {
        name: calls.unplain(v, _no_view)
        for name, v in cast("dict[str, Value]", body["named"]).items()
    }
    require_affordable(func, tile.bare_arguments(), named)
    storages = {cell: _sparse(opened[cell], ranges) for cell, ranges in tile.ranges().items()}
    args = tile.arguments(storages)
    with plain.active(seed=arithmetic.seed, purpose="step", step=step):
        results = func(*args, **named)
    return tile.content(results, args)


def state_tensor(body: Mapping[str, Value], contents: Contents) -> TensorEntry:
    """The entry of a state's tensor, from the content of its cell.

    Raises:
        ValueError: the view does not fit into the cell.
    """
    found = View.from_value(body["view"])
    tensor = found.of(_storage(contents[found.cell]))
    name = cast("dict[str, Any]", body["tensor"])["name"]
    return entry(name, tensor)


def operator_of(body: Mapping[str, Value]) -> OpOverload:
    """The operator that an entry calls.

    Raises:
        ValueError: there is none of that name.
        UnsupportedOperatorError: it has no rule.
    """
    return _operator(str(body["operator"]))


def _definite(arithmetic: Arithmetic) -> Exact:
    plain = resolve(arithmetic.numerics)
    if not isinstance(plain, Exact):
        raise InconclusiveError(f"{plain.name} numerics have no definite results")
    return plain


def _operator(name: str) -> OpOverload:
    match = _OPERATOR.fullmatch(name)
    if match is None:
        raise ValueError(f"no operator: {name!a}")
    packet = getattr(torch.ops.aten, match[1], None)
    func = getattr(packet, match[2], None)
    if not isinstance(func, OpOverload):
        raise ValueError(f"no operator: {name!a}")
    lookup(func)  # refuses those without a rule
    return func


def _arguments(
    body: Mapping[str, Value], storages: Mapping[int, torch.UntypedStorage]
) -> tuple[list[Any], dict[str, Any]]:
    def to_tensor(found: View) -> Tensor:
        if found.cell not in storages:
            raise ValueError("an argument in a cell that is not read")
        return found.of(storages[found.cell])

    args = calls.unplain(body["arguments"], to_tensor)
    named = cast("dict[str, Value]", body["named"])
    return args, {name: calls.unplain(value, to_tensor) for name, value in named.items()}


def _storage(data: bytes) -> torch.UntypedStorage:
    storage = torch.UntypedStorage(len(data))
    fill(storage, data)
    return storage


def _sparse(opened: Opened, ranges: Sequence[tuple[int, int]]) -> torch.UntypedStorage:
    """A cell of which only these ranges are there; memory that nobody touches costs nothing."""
    if opened.total > _MOST_RESERVED:
        raise InconclusiveError(f"a cell of {opened.total} bytes is too large to compute with")
    storage = torch.UntypedStorage(opened.total)
    whole = _whole(storage).numpy().data
    for start, stop in clipped(ranges, opened.total):
        whole[start:stop] = opened.read(start, stop)
    return storage


def _no_view(view: View) -> Tensor:
    raise ValueError("a tensor among named arguments")


def _whole(storage: torch.UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(cast(Any, storage), 0, (storage.nbytes(),), (1,))
