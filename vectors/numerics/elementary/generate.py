"""Write cases.json and powers.json: inputs and expected bits of every elementary function."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from veritrain.numerics.cpu import elementary, multiprecision
from veritrain.numerics.cpu.elementary_constants import UNDECIDED

SPECIAL = (0x0, 0x1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7F800001, 0x7FC00001)
SPREADS = (0.01, 1.0, 4.0, 30.0)
TRIED = 1_000_000  # values per spread in which hard ones are looked for
KEPT = 12


def main() -> None:
    """Compute all cases."""
    write_functions()
    write_powers()


def write_functions() -> None:
    cases: dict[str, list[list[str]]] = {}
    for name, kernel in sorted(elementary.FUNCTIONS.items()):
        random = np.random.default_rng([20, *name.encode()])
        inputs = [bits | sign for bits in SPECIAL for sign in (0, 0x80000000)]
        inputs += random.integers(0, 2**32, KEPT).tolist()
        for spread in SPREADS:
            x = random.normal(0, spread, TRIED).astype(np.float32)
            out = np.empty(TRIED, np.int32)
            kernel(x, out, 0, TRIED)
            hard = np.flatnonzero(out == UNDECIDED)[:KEPT]
            inputs += x[:KEPT].view(np.uint32).tolist() + x[hard].view(np.uint32).tolist()
        cases[name] = [[f"{bits:08x}", f"{rounded(name, bits):08x}"] for bits in inputs]
    lines = (f'"{name}": {json.dumps(pairs)}' for name, pairs in cases.items())
    Path(__file__).with_name("cases.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def write_powers() -> None:
    random = np.random.default_rng(21)
    x, y = random.integers(0, 2**32, (2, KEPT), dtype=np.uint32).view(np.float32)
    pairs = list(zip(x.tolist(), y.tolist(), strict=True))
    pairs += [(2.0**a, b) for a, b in random.normal(0, 3, (40, 2)).tolist()]
    special = [multiprecision.float_of(bits) for bits in SPECIAL]
    pairs += [(s * a, b) for a in special for b in (*special, -0.5, 2.0, 3.0) for s in (1, -1)]
    pairs += [(2.0**12 + a, 2.0) for a in range(1, 9)] + [(float(a * a), 0.5) for a in range(3, 9)]
    lines = [json.dumps([bits_of(x), bits_of(y), power(x, y)]) for x, y in pairs]
    Path(__file__).with_name("powers.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


def bits_of(x: float) -> str:
    """Hexadecimal bits of the fp32 number nearest to x."""
    return f"{multiprecision.bits_of(float(np.float32(x))):08x}"


def power(x: float, y: float) -> str:
    """Expected bits by the reference alone."""
    return f"{multiprecision.power_bits(float(np.float32(x)), float(np.float32(y))):08x}"


def rounded(name: str, bits: int) -> int:
    """Expected bits by the reference alone."""
    return multiprecision.rounded_bits(name, multiprecision.float_of(bits))


if __name__ == "__main__":
    main()
