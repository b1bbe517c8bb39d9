"""The transcript of a run: a folder of signed, write-once records that anyone can check.

    records, merkle, signing     what is said, committed to and signed
    tensors, packs               states as digests and as stored bytes
    store, locks, files, limits  the folder: local or remote, bounded, crash-safe, one writer
    writer, reader               the two ends: the trainer's and everyone else's
    slices, chaining             parts of a content, opened against its digest
    sizes                        what a run will take, before it is written

The format is specified in docs/format.md. Names load on first use: keys and records need no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from veritrain.transcript.reader import Transcript
    from veritrain.transcript.records import (
        Checkpoint,
        Head,
        Header,
        Leaf,
        SignedHead,
        TensorEntry,
        state_root,
    )
    from veritrain.transcript.signing import Signer
    from veritrain.transcript.tensors import state_entries
    from veritrain.transcript.writer import TranscriptWriter

__all__ = [
    "Checkpoint",
    "Head",
    "Header",
    "Leaf",
    "SignedHead",
    "Signer",
    "TensorEntry",
    "Transcript",
    "TranscriptWriter",
    "state_entries",
    "state_root",
]

_MODULES = {
    "Signer": "signing",
    "Transcript": "reader",
    "TranscriptWriter": "writer",
    "state_entries": "tensors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'records')}"), name)
