"""The rounding log of one step: for each rounded tensor its ambiguous entries and a checksum.

Layout, one record for each tensor in the order of computing (docs/numerics_logged.md, "Log"):

    checksum   8 bytes, little-endian
    sketch     2 bytes for each block of the tensor, little-endian
    count      unsigned LEB128, the shortest form
    entries    if count > 0: a bit string, filled up with zero bits to whole bytes

An entry is its direction (1 is up) and its gap to the entry before in Golomb-Rice code: the gap
without its `low` bits in unary (ones, then a zero), then those bits, highest first. `low` is a
function of the tensor's size and the count, so that a log has one form. A log that is not of this
form is refused, before more memory is taken than the tensor itself has entries.
"""

# pyright: reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

import numpy as np

from veritrain.errors import TranscriptError
from veritrain.numerics.cpu.integers import jit
from veritrain.numerics.logged.grid import BLOCK, Rounded

_WHERE = "rounding log"
_CHECKSUM_BYTES = 8


def _low_bits(size: int, count: int) -> int:
    """Bits of a gap that are written as they are: the mean gap's, less one."""
    return max(0, (size // count).bit_length() - 1)


@jit
def _encode_kernel(places, up, low, out):
    """Write entries into zeroed bytes; returns the number of bits."""
    at, before = 0, -1
    for i in range(places.shape[0]):
        gap = places[i] - before - 1
        before = places[i]
        if up[i]:
            out[at >> 3] |= np.uint8(128 >> (at & 7))
        at += 1
        for _ in range(gap >> low):
            out[at >> 3] |= np.uint8(128 >> (at & 7))
            at += 1
        at += 1
        left = low  # bits of the gap that are to be written, as many as fit into a byte at a time
        while left > 0:
            room = 8 - (at & 7)
            taken = min(room, left)
            left -= taken
            part = (gap >> left) & ((1 << taken) - 1)
            out[at >> 3] |= np.uint8(part << (room - taken))
            at += taken
    return at


@jit
def _decode_kernel(data, start, low, size, places, up):
    """Read entries from byte `start` on; returns the next bit, or -1 where it is no such log."""
    at, end, before = start * 8, data.shape[0] * 8, -1
    for i in range(places.shape[0]):
        if at >= end:
            return -1
        up[i] = (data[at >> 3] >> (7 - (at & 7))) & 1
        at += 1
        gap = 0
        while at < end and (data[at >> 3] >> (7 - (at & 7))) & 1:
            gap += 1
            at += 1
        at += 1
        if at + low > end or gap > size >> low:
            return -1
        left = low
        while left > 0:
            room = 8 - (at & 7)
            taken = min(room, left)
            left -= taken
            part = (np.int64(data[at >> 3]) >> (room - taken)) & ((1 << taken) - 1)
            gap = (gap << taken) | part
            at += taken
        if gap >= size - before - 1:
            return -1
        before += gap + 1
        places[i] = before
    while at & 7:
        if (data[at >> 3] >> (7 - (at & 7))) & 1:
            return -1
        at += 1
    return at


class LogWriter:
    """Collects the records of a step."""

    def __init__(self) -> None:
        self._data = bytearray()

    def append(self, size: int, rounded: Rounded) -> None:
        """Add the record of a tensor of `size` entries."""
        count = rounded.places.size
        self._data += rounded.checksum.to_bytes(_CHECKSUM_BYTES, "little")
        self._data += rounded.sketch.astype("<u2").tobytes() + _varint(count)
        if not count:
            return
        low = _low_bits(size, count)
        # all gaps together are below `size`, and so are their high parts
        room = count * (low + 2) + (size >> low)
        out = np.zeros(room // 8 + 1, np.uint8)
        bits = _encode_kernel(rounded.places, rounded.up, low, out)
        self._data += out[: -(-bits // 8)].tobytes()

    def to_bytes(self) -> bytes:
        """The log so far."""
        return bytes(self._data)


class LogReader:
    """Reads the records of a step, which someone else wrote."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._bytes = np.frombuffer(data, np.uint8)
        self.position = 0  # bytes read

    def next(self, size: int) -> Rounded:
        """The record of the next tensor, of `size` entries.

        Raises:
            TranscriptError: the log ends here, or is not of the one form.
        """
        checksum = int.from_bytes(self._take(_CHECKSUM_BYTES), "little")
        sketch = np.frombuffer(self._take(2 * -(-size // BLOCK)), "<u2")
        count = self._count(size)
        places, up = np.empty(count, np.int64), np.empty(count, np.bool_)
        if count:
            low = _low_bits(size, count)
            bits = _decode_kernel(self._bytes, self.position, low, size, places, up)
            if bits < 0:
                raise self._malformed("entries that are not of this tensor")
            self.position = bits // 8
        return Rounded(places=places, up=up, checksum=checksum, sketch=sketch)

    def finish(self) -> None:
        """Check that nothing follows.

        Raises:
            TranscriptError: more records than tensors.
        """
        if self.position != len(self._data):
            raise self._malformed("goes on after the step's last tensor")

    def _take(self, count: int) -> bytes:
        part = self._data[self.position : self.position + count]
        if len(part) < count:
            raise self._malformed("ends early")
        self.position += count
        return part

    def _count(self, size: int) -> int:
        count = shift = 0
        while True:
            (byte,) = self._take(1)
            count |= (byte & 127) << shift
            shift += 7
            if count > size or shift > 63:
                raise self._malformed(f"expected at most {size} entries")
            if byte < 128:
                break
        if byte == 0 and shift > 7:
            raise self._malformed("a number that is longer than need be")
        if count > 8 * (len(self._data) - self.position):
            raise self._malformed("ends early")  # every entry takes a bit or more
        return count

    def _malformed(self, problem: str) -> TranscriptError:
        return TranscriptError(_WHERE, f"byte {self.position}: {problem}")


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    return bytes(out + bytes([number]))
