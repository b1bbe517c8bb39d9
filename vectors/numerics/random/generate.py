"""Write cases.json: streams, and the bits of every fill; and generators.json: what generators with
a seed give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch

from veritrain.numerics import resolve
from veritrain.numerics.cpu import philox
from veritrain.numerics.keys import generators
from veritrain.numerics.keys.stream import KeyStream

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


SEEDS = (0, 5, 2**32 + 5, 67280421310721, 2**64 - 1)
WEIGHTS = (0.3, 0.0, 1e-9, 2.5, 1e-300, 0.7)


def generator_case(seed: int) -> dict[str, object]:
    """Three operators that draw from a generator, and two choices by weights."""
    generator = torch.Generator().manual_seed(seed)
    with resolve("exact").active(seed=0, purpose="vectors", step=0):
        given: list[int] = []
        for _ in range(3):
            with generators.keys_of(generator):
                given.append(int.from_bytes(generators.state(), "little"))
        generator.manual_seed(seed)
        drawn = [bits(torch.rand(5, generator=generator)) for _ in given]
        weights = torch.tensor(WEIGHTS, dtype=torch.float64)
        replaced = torch.multinomial(weights, COUNT, replacement=True, generator=generator)
        order = torch.multinomial(weights, 3, generator=generator)
    streams = [KeyStream(one, "generator", 0) for one in given]
    return {
        "seed": f"{seed:016x}",
        "K": [f"{one:016x}" for one in given],
        "keys": [[f"{stream.next_key():016x}" for _ in range(2)] for stream in streams],
        "uniform24": drawn,
        "weights": [weight.hex() for weight in WEIGHTS],
        "replaced": replaced.tolist(),
        "order": order.tolist(),
    }


def main() -> None:
    """Compute all cases."""
    cases: list[dict[str, object]] = []
    for (seed, purpose, step), p, (low, high) in zip(NAMES, PROBABILITIES, RANGES, strict=True):
        stream = KeyStream(seed, purpose, step)
        key, *others = (stream.next_key() for _ in range(3))
        cases.append(
            {
                "seed": f"{seed:064x}",
                "purpose": purpose,
                "step": step,
                "keys": [f"{k:016x}" for k in (key, *others)],
                "words": [f"{word:08x}" for word in philox.words(key, COUNT).tolist()],
                "uniform24": bits(philox.uniform24(key, (COUNT,))),
                "normal": bits(philox.normal(key, (COUNT,))),
                "exponential": bits(philox.exponential(key, (COUNT,))),
                "p": p,
                "bernoulli": philox.bernoulli(key, p, (COUNT,)).int().tolist(),
                "range": [low, high],
                "integers": philox.integers(key, low, high, (COUNT,)).tolist(),
                "permutation": philox.permutation(seed, purpose, step, COUNT).tolist(),
            }
        )
    folder = Path(__file__).parent
    (folder / "cases.json").write_text(json.dumps(cases, indent=1) + "\n")
    seeded = [generator_case(seed) for seed in SEEDS]
    (folder / "generators.json").write_text(json.dumps(seeded, indent=1) + "\n")


if __name__ == "__main__":
    main()
