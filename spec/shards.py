"""The mean over shards, number by number, and its vectors (docs/numerics.md, "A step in shards").

    python -m spec.shards        writes vectors/numerics/shards/cases.json again

Nothing of the product is imported. Additions and divisions are those of single float32 numbers of
numpy, which are IEEE operations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float32]
Values: TypeAlias = Sequence[Array | None]

FILE = Path(__file__).parents[1] / "vectors" / "numerics" / "shards" / "cases.json"
_NAN = 0x7FC00000
_EDGES = (0.0, -0.0, 2.0**-149, -(2.0**-149), 2.0**-126, 1.0, -1.5, 3.4028234663852886e38, np.inf)
_SHARDS = (2, 3, 4, 5, 6, 7, 8, 13, 16)


def halves(length: int) -> int:
    """Where a range of shards is cut: the largest power of two below its length."""
    middle = 1
    while 2 * middle < length:
        middle *= 2
    return middle


def total(gradients: Values) -> Array | None:
    """The sum over a range of shards; None where no shard has a gradient."""
    if len(gradients) == 1:
        return gradients[0]
    middle = halves(len(gradients))
    left, right = total(gradients[:middle]), total(gradients[middle:])
    some = left if left is not None else right
    if some is None:
        return None
    zeros = np.zeros_like(some)
    left, right = (zeros if side is None else side for side in (left, right))
    with np.errstate(all="ignore"):
        numbers = [a + b for a, b in zip(left.ravel(), right.ravel(), strict=True)]
    return np.array(numbers, np.float32).reshape(some.shape)


def mean(gradients: Values) -> Array | None:
    """The mean over all shards."""
    found, count = total(gradients), np.float32(len(gradients))
    if found is None:
        return None
    with np.errstate(all="ignore"):
        return np.array([x / count for x in found.ravel()], np.float32).reshape(found.shape)


def mean_loss(losses: Sequence[float]) -> float:
    """The mean of the shards' losses, in binary64."""

    def added(some: Sequence[float]) -> float:
        if len(some) == 1:
            return some[0]
        middle = halves(len(some))
        return added(some[:middle]) + added(some[middle:])

    return added(losses) / len(losses)


def numbers(label: str, count: int) -> Array:
    """Float32 numbers of both signs and of magnitudes from 2**-20 to 2**20, made of a label."""
    words = np.frombuffer(blake3(label.encode()).digest(length=4 * count), "<u4")
    exponents = np.uint32(107) + (words >> np.uint32(23)) % np.uint32(40)
    bits = (words & np.uint32(0x807FFFFF)) | exponents << np.uint32(23)
    return bits.astype(np.uint32).view(np.float32)


def inputs() -> Iterator[tuple[str, list[Array | None]]]:
    """Names of cases, and the gradients of one parameter in all shards."""
    for count in _SHARDS:
        yield f"{count} shards", [numbers(f"{count} {shard}", 6) for shard in range(count)]
        yield (
            f"{count} shards, every third without a gradient",
            [None if shard % 3 == 1 else numbers(f"{count} {shard}", 3) for shard in range(count)],
        )
    edges = np.array(_EDGES, np.float32)
    yield "edges", [np.roll(edges, shard) for shard in range(len(edges))]
    yield "minus zero alone", [np.array([-0.0], np.float32) for _ in range(3)]
    yield "minus zero beside none", [np.array([-0.0], np.float32), None]
    yield "the last shard alone", [None, None, None, None, numbers("alone", 4)]
    yield "no shard", [None, None, None]
    yield (
        "infinities of both signs",
        [np.array([s * np.inf, s * np.inf], np.float32) for s in (1, -1)],
    )
    yield "an overflow of the sum", [np.array([3e38], np.float32) for _ in range(4)]
    yield "a quotient that is subnormal", [np.array([2.0**-149], np.float32) for _ in range(3)]


def encoded(value: Array | None) -> dict[str, Any] | None:
    """A tensor as vectors/numerics/README.md describes it."""
    if value is None:
        return None
    bits = np.where(np.isnan(value), np.uint32(_NAN), value.view(np.uint32))
    return {"shape": list(value.shape), "float32": " ".join(f"{x:08x}" for x in bits.ravel())}


def text() -> str:
    """The file."""
    lines: list[str] = []
    for name, gradients in inputs():
        losses = [float(x) for x in numbers(f"losses {name}", len(gradients))]
        case: dict[str, Any] = {
            "name": name,
            "operation": "mean_over_shards",
            "inputs": {str(shard): encoded(value) for shard, value in enumerate(gradients)},
            "arguments": {"losses": losses, "loss": mean_loss(losses)},
            "outputs": {"y": encoded(mean(gradients))},
        }
        lines.append(json.dumps(case))
    return '{"numerics": "exact", "version": 2, "cases": [\n' + ",\n".join(lines) + "\n]}\n"


if __name__ == "__main__":
    FILE.write_text(text())
