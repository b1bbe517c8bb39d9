"""Packs of nothing: a file of a few bytes on the disk holds gigabytes of zeros, and whoever hashes
them works.

What is counted is bytes that are hashed, not time.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_builder import COMMITS, make_run, resign, write_files

from veritrain.encoding import digest, digest_parts, encode
from veritrain.errors import TranscriptError, VerificationError
from veritrain.transcript import files
from veritrain.transcript import reader as reader_module
from veritrain.transcript.packs import pack_layout
from veritrain.transcript.reader import Transcript
from veritrain.transcript.records import Checkpoint, TensorEntry, decode_segment, encode_segment
from veritrain.transcript.states import state_root

SIZE = 1 << 20  # bytes of zeros; what counts is that it is not a byte on the disk


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Bytes of contents that the reader hashed, one entry for each time."""
    counted: list[int] = []

    def parts(domain: str, data: Iterable[memoryview]) -> bytes:
        def counting() -> Iterator[memoryview]:
            for part in data:
                counted.append(len(part))
                yield part

        return digest_parts(domain, counting())

    def whole(domain: str, data: bytes | memoryview) -> bytes:
        if domain == "tensor":
            counted.append(len(data))
        return digest(domain, data)

    monkeypatch.setattr(reader_module, "digest_parts", parts)
    monkeypatch.setattr(reader_module, "digest", whole)
    return counted


def zeros(name: str, size: int = SIZE, dtype: str = "uint8") -> TensorEntry:
    found = digest("tensor", bytes(size))
    return TensorEntry(name=name, dtype=dtype, shape=(size,), digest=found)


def sparse_run(folder: Path, states: dict[int, tuple[TensorEntry, ...]]) -> Transcript:
    """A signed run whose checkpoints at these steps store these states, of zeros, whole in their
    packs."""
    run = make_run()
    sizes: dict[str, int] = {}
    previous = None
    for step in COMMITS:
        leaves = list(decode_segment(run[files.segment_path(step)], where="own"))
        for place, leaf in enumerate(leaves):
            own = {"previous": previous} if previous is not None else {}
            own |= {"state": state_root(states[step])} if leaf.step == step in states else {}
            leaves[place] = replace(leaf, **own)
            previous = leaves[place].digest
        run[files.segment_path(step)] = encode_segment(leaves)
        if step in states:
            tensors = states[step]
            made = Checkpoint(step=step, tensors=tensors, packs=(step,) * len(tensors))
            layout = pack_layout(made.stored_sizes())
            run[files.manifest_path(step)] = made.to_bytes()
            run[files.pack_path(step)] = layout.header
            sizes[files.pack_path(step)] = layout.total_bytes
    resign(run)
    write_files(folder, run)
    for path, size in sizes.items():
        os.truncate(folder / path, size)
    transcript = Transcript.open(folder)
    transcript.verify_signatures()
    transcript.verify_chain()
    return transcript


def test_a_state_is_refused_before_a_byte_of_it_is_hashed(
    tmp_path: Path, hashed: list[int]
) -> None:
    transcript = sparse_run(tmp_path, {2: (zeros("model/x"),)})

    def check(entries: tuple[TensorEntry, ...]) -> None:
        if sum(entry.num_bytes for entry in entries) >= SIZE:
            raise VerificationError("no such state")

    transcript.verify_checkpoint(0, check=check)
    before = sum(hashed)
    with pytest.raises(VerificationError, match="no such state"):
        transcript.verify_checkpoint(2, check=check)
    with pytest.raises(VerificationError, match="no such state"):
        transcript.load_state(2, check=check)
    assert 0 < sum(hashed) == before < 1000


def test_a_content_in_every_pack_is_hashed_once(tmp_path: Path, hashed: list[int]) -> None:
    transcript = sparse_run(tmp_path, {step: (zeros("model/x"),) for step in COMMITS})
    transcript.verify_checkpoint(0)
    for step in COMMITS[1:]:
        with pytest.raises(VerificationError, match="the pack of step 0 is the first that holds"):
            transcript.verify_checkpoint(step)
    assert sum(hashed) == SIZE


def test_a_content_of_many_tensors_is_hashed_once(tmp_path: Path, hashed: list[int]) -> None:
    tensors = tuple(zeros(f"model/{index:03d}") for index in range(20))
    transcript = sparse_run(tmp_path, {2: tensors})
    state = transcript.load_state(2)
    assert sum(hashed) == 2 * SIZE  # before memory is taken, and of what was read
    assert len({tensor.data_ptr() for tensor in state.values()}) == 20
    assert all(
        torch.equal(tensor, torch.zeros(SIZE, dtype=torch.uint8)) for tensor in state.values()
    )


def test_another_size_of_a_pack_is_refused_before_it_is_hashed(
    tmp_path: Path, hashed: list[int]
) -> None:
    transcript = sparse_run(tmp_path, {2: (zeros("model/x"),)})
    os.truncate(tmp_path / files.pack_path(2), 10 * SIZE)
    with pytest.raises(TranscriptError, match=r"000002.safetensors: expected \d+ bytes, got more"):
        transcript.verify_checkpoint(2)
    assert hashed == []


@pytest.mark.parametrize("shared", [False, True])
def test_truth_values_of_a_stored_state_are_0_or_1(tmp_path: Path, shared: bool) -> None:
    """One content can belong to tensors of several dtypes."""
    found = digest("tensor", b"\2\0")
    entries = [TensorEntry(name="b", dtype="bool", shape=(2,), digest=found)]
    if shared:
        entries.insert(0, replace(entries[0], name="a", dtype="uint8"))
    transcript = sparse_run(tmp_path, {2: tuple(entries)})
    path = tmp_path / files.pack_path(2)
    path.write_bytes(path.read_bytes()[:-2] + b"\2\0")
    with pytest.raises(TranscriptError, match="tensor 'b': a truth value that is neither 0 nor 1"):
        transcript.load_state(2)


def test_manifests_that_refer_to_many_packs_are_read_once_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many contents each manifest was read again for each checkpoint that refers to its
    pack."""
    count = 24
    run = make_run(last=count - 1, commits=tuple(range(count)))
    entries = [
        [zeros(f"{step:02d}/{index}", 1000 * step + index) for index in range(5)]
        for step in range(count)
    ]
    for step in range(count):
        known = [(entry, own) for own in range(step + 1) for entry in entries[own]]
        path = files.manifest_path(step)
        tensors, packs = zip(*known, strict=True)
        run[path] = Checkpoint(step=step, tensors=tensors, packs=packs).to_bytes()
        (leaf,) = decode_segment(run[files.segment_path(step)], where="own")
        run[files.segment_path(step)] = encode(
            [replace(leaf, state=state_root(tensors)).to_value()]
        )
    resign(run)
    transcript = Transcript.open(write_files(tmp_path, run))
    reads: list[int] = []
    read = reader_module._read_checkpoint
    monkeypatch.setattr(
        reader_module,
        "_read_checkpoint",
        lambda store, step: reads.append(step) or read(store, step),
    )
    for step in range(count):
        transcript.verify_checkpoint(step, packs=False)
    assert len(reads) == count
