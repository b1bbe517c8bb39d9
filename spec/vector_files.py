"""How tensors are written in `vectors/numerics/*.json` (its README.md is the description)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from blake3 import blake3

FOLDER = Path(__file__).parents[1] / "vectors" / "numerics"
LARGEST = 600  # values that are written out; larger tensors are a rule or a digest
NAN = 0x7FC00000


@dataclass(frozen=True)
class Stream:
    """Numbers made of the bytes of a label's BLAKE3 stream: exponent fields are in [low, high]."""

    label: str
    shape: tuple[int, ...]
    low: int
    high: int

    def array(self) -> np.ndarray:
        """The numbers, float32."""
        count = int(np.prod(self.shape))
        words = np.frombuffer(blake3(self.label.encode()).digest(length=4 * count), "<u4")
        sign, mantissa = words & 0x80000000, words & 0x007FFFFF
        exponent = self.low + ((words >> 23) & 0xFF) % (self.high - self.low + 1)
        return (
            (sign | exponent << 23 | mantissa)
            .astype(np.uint32)
            .view(np.float32)
            .reshape(self.shape)
        )


def patterns(x: np.ndarray) -> np.ndarray:
    """Bits of float32 values, every NaN as 7fc00000."""
    x = np.ascontiguousarray(x, np.float32)
    return np.where(np.isnan(x), np.uint32(NAN), x.view(np.uint32))


def digest(x: np.ndarray) -> str:
    """BLAKE3 of the bits, four bytes little-endian each, row-major."""
    return blake3(patterns(x).astype("<u4").tobytes()).hexdigest()


def encode(x: np.ndarray | Stream | None) -> dict[str, Any] | None:
    """The JSON form of a tensor."""
    if x is None:
        return None
    if isinstance(x, Stream):
        if np.prod(x.shape) > LARGEST:
            rule = {"label": x.label, "exponents": [x.low, x.high]}
            return {"shape": list(x.shape), "stream": rule, "blake3": digest(x.array())}
        x = x.array()
    x = np.asarray(x)
    if x.dtype == np.int64:
        return {"shape": list(x.shape), "int64": [int(value) for value in x.ravel()]}
    if x.dtype != np.float32:
        raise TypeError(f"expected float32 or int64, got {x.dtype}")
    if x.size > LARGEST:
        return {"shape": list(x.shape), "blake3": digest(x)}
    words = " ".join(f"{word:08x}" for word in patterns(x).ravel())
    return {"shape": list(x.shape), "float32": words}


def decode(tensor: dict[str, Any] | None) -> np.ndarray | None:
    """An input from its JSON form."""
    if tensor is None:
        return None
    shape = tuple(tensor["shape"])
    if "int64" in tensor:
        return np.array(tensor["int64"], np.int64).reshape(shape)
    if "stream" in tensor:
        return Stream(tensor["stream"]["label"], shape, *tensor["stream"]["exponents"]).array()
    words = [int(word, 16) for word in tensor["float32"].split()]
    return np.array(words, np.uint32).view(np.float32).reshape(shape)


def read(chapter: str) -> dict[str, Any]:
    """The file of a chapter."""
    return json.loads((FOLDER / f"{chapter}.json").read_text())


def chapters() -> list[str]:
    """The files of this form."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))
