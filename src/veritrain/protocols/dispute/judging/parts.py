"""Parts: results of which a part decides, or which need no operand's value at all.

Where operands are large, the judge looks at the first group of chunks in which the results differ,
and has only the parts of the operands opened that decide it.
"""

from __future__ import annotations

from typing import cast

import torch

from veritrain.encoding import CHUNK_BYTES, encode
from veritrain.errors import InconclusiveError
from veritrain.protocols.dispute.judge import Ruling
from veritrain.protocols.dispute.judging import judged_case
from veritrain.protocols.dispute.judging.judged_case import (
    JudgedCase,
    against,
    decided,
    require_openable,
)
from veritrain.protocols.dispute.messages import PARTIES
from veritrain.replay.trace.calls import TracedCall, views_in
from veritrain.replay.trace.cells import is_short_content
from veritrain.replay.trace.entry_bodies import Effects, OperatorBody, WrittenCell
from veritrain.replay.trace.openings import (
    opened_groups,
    opened_operands,
    opened_part,
    tile_size,
)
from veritrain.replay.trace.recompute import operator_named, recompute_tile
from veritrain.replay.trace.requests import OpenGroups, OpenTile
from veritrain.replay.trace.shapes import Layout, layout_of
from veritrain.replay.trace.tiles import Tile, group_chunks, has_parts, tile

WHOLE_BYTES = 1 << 18  # of operands that are opened whole; of more, parts are, where they decide


def false_bookkeeping(judged: JudgedCase) -> Ruling | None:
    """What follows without a value: operators that have parts draw nothing, and keep the sizes of
    cells. The entry holds the content of short cells, and of no others."""
    body = judged.bodies[0]
    if not isinstance(body, OperatorBody) or not has_parts(body.call):
        return None
    sizes = body.operands.sizes()

    def problem(effects: Effects | None) -> str | None:
        if effects is None:
            return None
        if effects.drawn != body.call.draw:
            return "random numbers that it does not draw"
        dtypes = _dtypes(body.call, effects)
        for write in effects.writes:
            if sizes.get(write.cell, write.size) != write.size:
                return f"another size of cell {write.cell}"
            short = {is_short_content(write.size, dtype) for dtype in dtypes.get(write.cell, ())}
            if short == {write.content is None}:
                return f"cell {write.cell} with its content, or without it"
        return None

    return against(_effects(judged), problem, f"{body.call.operator}, entry {judged.case.index}")


def false_layout(judged: JudgedCase) -> Ruling | None:
    """How results lie, of operators that have parts and operands too large to be computed again
    whole."""
    body = judged.bodies[0]
    if not isinstance(body, OperatorBody) or not has_parts(body.call):
        return None
    trainer, challenger = _effects(judged)
    if body.operands.num_bytes <= judged_case.MOST_BYTES or trainer is None or challenger is None:
        return None
    claims = [encode(Layout.of(effects).to_value()) for effects in (trainer, challenger)]
    if claims[0] == claims[1]:
        return None
    try:
        found = layout_of(operator_named(body.call.operator), body)
    except InconclusiveError:
        return None
    expected = None if found is None else encode(found.to_value())
    if expected not in claims:
        return None
    return against(
        claims,
        lambda claim: None if claim == expected else "it lies in another way",
        f"result of {body.call.operator}, entry {judged.case.index}",
    )


def false_part(judged: JudgedCase) -> Ruling | None:
    """Who is wrong in the first group of chunks that differs, where a part of the results
    decides."""
    pair = _divisible(judged)
    if pair is None:
        return None
    body = cast(OperatorBody, judged.bodies[0])
    name, reads = body.call.operator, body.operands.reads
    cell, size = pair[0].cell, pair[0].size
    chunks = group_chunks(size)
    groups = judged.opened_by_both(
        OpenGroups(cell=cell, chunks=chunks),
        [lambda detail, own=own: opened_groups(detail, own, chunks) for own in pair],
    )
    first = next(i for i, (a, b) in enumerate(zip(*groups, strict=True)) if a != b)
    start = first * chunks * CHUNK_BYTES
    stop = min(size, start + chunks * CHUNK_BYTES)
    part = cast(Tile, tile(body, cell, start, stop))  # there is one: see `_divisible`
    require_openable(name, *tile_size(part, size, body.operands.sizes()))
    request = OpenTile(cell=cell, start=start, stop=stop)
    claims = judged.opened_by_both(
        request, [lambda detail, own=own: opened_part(detail, own, part) for own in pair]
    )
    operands = judged.opened(request, lambda detail: opened_operands(detail, reads, part), PARTIES)
    expected = recompute_tile(judged.arithmetic, judged.case.step, body, part, operands)
    return decided(
        claims,
        lambda claim: None if claim == expected else f"another in bytes {start} to {stop}",
        f"result of {name}, entry {judged.case.index}, cell {cell}",
    )


def _dtypes(call: TracedCall, effects: Effects) -> dict[int, set[torch.dtype]]:
    """The dtypes of all views of each cell among arguments and results."""
    found: dict[int, set[torch.dtype]] = {}
    for value in (*call.arguments, *call.named.values(), effects.results):
        for view in views_in(value):
            found.setdefault(view.cell, set()).add(view.dtype)
    return found


def _effects(judged: JudgedCase) -> tuple[Effects | None, Effects | None]:
    """What each party says came of the call; the structures were found equal."""
    trainer, challenger = cast("tuple[OperatorBody, OperatorBody]", judged.bodies)
    return trainer.effects, challenger.effects


def _divisible(judged: JudgedCase) -> tuple[WrittenCell, WrittenCell] | None:
    """The first written cell that differs, as both have it, if a part of it decides."""
    body = judged.bodies[0]
    if not isinstance(body, OperatorBody) or body.operands.num_bytes <= WHOLE_BYTES:
        return None
    ours, theirs = _effects(judged)
    if body.operands.log is not None or ours is None or theirs is None:
        return None
    same_layout = encode(Layout.of(ours).to_value()) == encode(Layout.of(theirs).to_value())
    if not same_layout or ours.drawn != theirs.drawn:
        return None
    for own, other in zip(ours.writes, theirs.writes, strict=True):
        if own.digest != other.digest:
            is_divisible = own.size and tile(body, own.cell, 0, 1) is not None
            return (own, other) if is_divisible else None
    return None
