"""Every bound on what is read from a run, in one place, with its unit.

A run folder is hostile input: each bound is checked before memory is taken or time is spent. The
writer keeps the same bounds, so that nothing it writes is refused by the reader. A run within these
bounds costs a reader at most about 100 times `record_bytes` of memory for one record, the worst
case of decoding nested empty arrays.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one run; `LIMITS` holds the values of format version 1."""

    files: int = 1_000_000  # files in one run folder; a commit writes four, a logged step one
    header_bytes: int = 1 << 20  # file `header`: a job with thousands of source files
    signature_bytes: int = 4096  # file `signatures/*`; a signed head has about 400 bytes
    record_bytes: int = 4 << 20  # files `leaves/*` and `checkpoints/*.manifest`
    rounding_bytes: int = 1 << 26  # files `rounding/*`: one step's log
    sources_bytes: int = 1 << 24  # file `sources`: all source files of a job
    records_bytes: int = 1 << 26  # file `records`: 34 bytes for each record, and their forms
    path_chars: int = 4096  # code points of the name of a source file
    leaves_per_segment: int = 16_384  # steps from one commit to the next; at most 205 bytes each
    leaves: int = 4_000_000  # steps of one run
    tensors: int = 25_000  # tensors of one state
    state_bytes: int = 1 << 37  # all tensors of one state; `load_state` allocates that much
    dimensions: int = 64  # axes of one tensor
    name_chars: int = 1024  # code points of a tensor's name or of any other short text
    key_file_bytes: int = 16_384  # a PEM file with one private key


LIMITS = Limits()
