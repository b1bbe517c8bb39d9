"""The keys of one step's random numbers: digests of (seed, purpose, step, call).

A key is an integer of 64 bits. What a key's numbers are is in `cpu.philox`.
"""

from __future__ import annotations

from veritrain import encoding
from veritrain.errors import UsageError

SEED_BYTES = 32
CALLS = 1 << 32  # of one stream at most


class KeyStream:
    """The keys of one step, in the order in which they are asked for."""

    def __init__(self, seed: int, purpose: str, step: int, calls: range = range(CALLS)) -> None:
        """Start at the first of the calls that the stream has.

        Raises:
            UsageError: a seed outside [0, 2^256) or a step outside [0, 2^63).
        """
        if not 0 <= seed < 1 << 8 * SEED_BYTES:
            raise UsageError(f"seed: expected 0 <= seed < 2**256, got {seed}")
        if not 0 <= step < 1 << 63:
            raise UsageError(f"step: expected 0 <= step < 2**63, got {step}")
        self._seed = seed.to_bytes(SEED_BYTES, "big")
        self._purpose = purpose
        self._step = step
        self.calls = calls
        self.call = calls.start  # number of the next one

    def next_key(self) -> int:
        """Return the key of the next call, an integer of 64 bits."""
        value: list[encoding.Value] = [self._seed, self._purpose, self._step, self.call]
        self.call += 1
        return int.from_bytes(encoding.digest_value("random key", value)[:8], "little")
