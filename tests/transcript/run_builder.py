"""Small runs, honest and forged, shared by the transcript tests and the format vectors.

A run is a dict from path to bytes, so that a test can change anything and write it to a folder.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from torch import Tensor

from veritrain.encoding import Value, digest
from veritrain.errors import VerificationError
from veritrain.transcript import files, merkle
from veritrain.transcript.carried import Records, Sources
from veritrain.transcript.reader import Transcript
from veritrain.transcript.records import Head, Header, SignedHead, decode_segment
from veritrain.transcript.signing import Signer
from veritrain.transcript.tensors import state_entries, state_root
from veritrain.transcript.writer import TranscriptWriter

Files = dict[str, bytes]

SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
OTHER_SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
COMMITS = (0, 2, 3)


def make_header(signer: Signer = SIGNER, seed: int = 7) -> Header:
    return Header(
        numerics="exact",
        numerics_version=1,
        job={"config": {"seed": seed, "rate": 0.1}, "sources": {"job.py": bytes(32)}},
        dataset_root=digest("example", b"data"),
        dataset_count=5,
        environment={"python": "3.11.7", "torch": "2.13.0"},
        public_key=signer.public_key,
    )


def state_at(step: int) -> dict[str, Tensor]:
    """Every kind of tensor that matters: tied, frozen, scalar, bfloat16, bool, empty, NaN."""
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3) + step
    return {
        "model/weight": weight,
        "model/tied": weight,
        "model/frozen": torch.full((4,), 0.5),
        "model/half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16) * step,
        "model/mask": torch.tensor([True, False, step % 2 == 0]),
        "model/nothing": torch.empty(0, 3),
        "model/nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "optimizer/zeros": torch.zeros(2),
        "optimizer/zeros as a column": torch.zeros(2, 1),
        "optimizer/step": torch.tensor(step),
    }


def continue_run(writer: TranscriptWriter, last: int, commits: tuple[int, ...] = COMMITS) -> None:
    for step in range(writer.next_step, last + 1):
        state = state_at(step)
        entries = state_entries(state)
        batch = digest("example", b"batch %d" % step) if step else None
        loss = 1 / step if step else None
        writer.append(state=state_root(entries), batch=batch, loss=loss)
        if step in commits:
            writer.commit(state, entries)


def make_run(
    last: int = COMMITS[-1], signer: Signer = SIGNER, commits: tuple[int, ...] = COMMITS
) -> Files:
    with TemporaryDirectory() as folder:
        writer = TranscriptWriter.create(folder, make_header(signer), signer)
        continue_run(writer, last, commits)
        return read_files(folder)


SOURCES = {"job.py": b"RATE = 0.1\n", "notes/words.txt": b"one\r\ntwo"}
RECORDS = [(digest("record", b"%d" % index), "(tensor float32 [2], int)") for index in range(4)]
RECORDS.append((digest("random record", b"4"), "draws random numbers: int"))


def carrying_header(signer: Signer = SIGNER) -> Header:
    """Of a run whose sources and records are those above."""
    sources: dict[str, Value] = {name: digest("source", data) for name, data in SOURCES.items()}
    return replace(
        make_header(signer),
        job={"config": {"seed": 7, "rate": 0.1}, "sources": sources},
        dataset_root=merkle.root([found for found, _ in RECORDS]),
    )


def carried(header: Header, signer: Signer = SIGNER) -> tuple[Sources | Records, ...]:
    return Sources(files=SOURCES), Records.signed(header, RECORDS, signer)


def make_carrying_run(last: int = COMMITS[-1]) -> Files:
    header = carrying_header()
    with TemporaryDirectory() as folder:
        writer = TranscriptWriter.create(folder, header, SIGNER, carried(header))
        continue_run(writer, last)
        return read_files(folder)


def read_files(folder: str | Path) -> Files:
    root = Path(folder)
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def write_files(folder: str | Path, run: Files) -> Path:
    for path, data in run.items():
        target = Path(folder) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return Path(folder)


def verify_all(url: str | Path) -> Transcript:
    """Everything that can be said of a transcript alone; leftovers are refused."""
    transcript = Transcript.open(url)
    if transcript.leftovers:
        raise VerificationError(f"leftovers: {transcript.leftovers}")
    transcript.verify_signatures()
    transcript.verify_chain()
    transcript.verify_carried()
    for step in transcript.checkpoint_steps:
        transcript.verify_checkpoint(step)
    return transcript


def head_of(run: Files, step: int) -> Head:
    path = files.signature_path(step)
    return SignedHead.from_bytes(run[path], where=path).head


def put_head(run: Files, head: Head, signer: Signer = SIGNER) -> None:
    signed = SignedHead(head=head, signature=signer.sign("head", head.to_bytes()))
    run[files.signature_path(head.step)] = signed.to_bytes()


def resign(run: Files, change: Callable[[Head], Head] = lambda head: head) -> None:
    """What a trainer who lies can do: make all digests fit the files again and sign them.

    `change` is applied to every head last.
    """
    steps = sorted(int(path[-12:]) for path in run if path.startswith("signatures/"))
    leaves: list[bytes] = []
    previous = None
    for step in steps:
        segment = run[files.segment_path(step)]
        leaves += [leaf.to_bytes() for leaf in decode_segment(segment, where="forged")]
        head = replace(
            head_of(run, step),
            run=digest("header", run["header"]),
            root=merkle.root(leaves),
            segment=digest("segment", segment),
            checkpoint=digest("checkpoint", run[files.manifest_path(step)]),
            previous=previous,
        )
        head = change(head)
        put_head(run, head)
        previous = head.digest
