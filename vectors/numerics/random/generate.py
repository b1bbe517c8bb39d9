"""Write cases.json: streams, and the bits of every fill."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from veritrain.numerics import random

NAMES = (
    (0, "init", 0),
    (7, "step", 1),
    (2**256 - 1, "sample/3", 2**63 - 1),
    (2**128, "order é", 12),
)
COUNT = 11  # odd, and not a whole number of blocks
RANGES = ((-3, 4), (0, 1), (-(2**63), 2**63), (0, 2**62 + 1))
PROBABILITIES = (0.1, 0.5, 0.9, 1.0)


def bits(x: torch.Tensor) -> list[str]:
    """Hexadecimal bits of an fp32 vector."""
    return [f"{b:08x}" for b in x.numpy().view(np.uint32).tolist()]


def main() -> None:
    """Compute all cases."""
    cases: list[dict[str, object]] = []
    for (seed, purpose, step), p, (low, high) in zip(NAMES, PROBABILITIES, RANGES, strict=True):
        stream = random.Stream(seed, purpose, step)
        key, *others = (stream.next_key() for _ in range(3))
        cases.append(
            {
                "seed": f"{seed:064x}",
                "purpose": purpose,
                "step": step,
                "keys": [f"{k:016x}" for k in (key, *others)],
                "words": [f"{word:08x}" for word in random.words(key, COUNT).tolist()],
                "uniform24": bits(random.uniform24(key, (COUNT,))),
                "normal": bits(random.normal(key, (COUNT,))),
                "exponential": bits(random.exponential(key, (COUNT,))),
                "p": p,
                "bernoulli": random.bernoulli(key, p, (COUNT,)).int().tolist(),
                "range": [low, high],
                "integers": random.integers(key, low, high, (COUNT,)).tolist(),
                "permutation": random.permutation(seed, purpose, step, COUNT).tolist(),
            }
        )
    Path(__file__).with_name("cases.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
