"""The bytes of a pack: a safetensors file that holds tensors by the digest of their content.

A pack is wholly determined by the digests and sizes of what it holds. A reader therefore never
parses the header of a pack: it computes the one header that the manifest allows and compares.
Duplicate names, wrong types, overlapping offsets, huge shapes or another file format cannot pass,
and no parser sees hostile bytes.

Every tensor is stored as a row of bytes (dtype U8). One content can belong to tensors of several
dtypes and shapes (all zeros, for example); what the bytes mean is said by the manifest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veritrain.encoding import Digest

_LENGTH_BYTES = 8  # safetensors: the header's length, little-endian
_ALIGNMENT = 8  # safetensors: the header is padded with spaces to a multiple of this


@dataclass(frozen=True, kw_only=True)
class PackLayout:
    """Where everything of one pack lies; offsets in bytes from the start of the file."""

    header: bytes  # length and padded JSON
    spans: Mapping[Digest, tuple[int, int]]  # digest: (offset, size), in file order
    total_bytes: int


def pack_layout(sizes: Mapping[Digest, int]) -> PackLayout:
    """The layout of the pack that holds contents of these sizes (bytes), sorted by digest."""
    fields: list[str] = []
    starts: dict[Digest, int] = {}
    end = 0
    for digest in sorted(sizes):
        start, end = end, end + sizes[digest]
        starts[digest] = start
        fields.append(
            f'"{digest.hex()}":{{"dtype":"U8","shape":[{sizes[digest]}],'
            f'"data_offsets":[{start},{end}]}}'
        )
    text = ("{" + ",".join(fields) + "}").encode("ascii")
    text += b" " * (-len(text) % _ALIGNMENT)
    header = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    spans = {digest: (len(header) + start, sizes[digest]) for digest, start in starts.items()}
    return PackLayout(header=header, spans=spans, total_bytes=len(header) + end)
