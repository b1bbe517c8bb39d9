"""Whoever changes a run folder without the key is found out, whatever bit or file it is."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builder import (
    COMMITS,
    SIGNER,
    Files,
    make_carrying_run,
    make_header,
    make_run,
    verify_all,
    write_files,
)

from veritrain.errors import TranscriptError, VerificationError
from veritrain.transcript import files, tensors
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.reader import Transcript
from veritrain.transcript.records import TensorEntry, state_root
from veritrain.transcript.store import LocalStore
from veritrain.transcript.tensors import state_entries
from veritrain.transcript.writer import TranscriptWriter

RUN = make_carrying_run()
PATHS = sorted(RUN)
OTHER_RUN = make_run(commits=(0, 1, 3))

paths = st.sampled_from(PATHS)
places = st.floats(0, 1, exclude_max=True)


def refused(run: Files) -> TranscriptError | VerificationError:
    with TemporaryDirectory() as folder:
        write_files(folder, run)
        with pytest.raises((TranscriptError, VerificationError)) as caught:
            verify_all(folder)
    assert str(caught.value).isprintable()
    return caught.value


def flipped(path: str, place: int, bit: int) -> Files:
    data = bytearray(RUN[path])
    data[place] ^= 1 << bit
    return {**RUN, path: bytes(data)}


def test_the_run_is_accepted_as_it_is(tmp_path: Path) -> None:
    verify_all(write_files(tmp_path, RUN))


@given(paths, places, st.integers(0, 7))
@settings(max_examples=300, deadline=None)
def test_any_flipped_bit_is_found(path: str, place: float, bit: int) -> None:
    refused(flipped(path, int(place * len(RUN[path])), bit))


@pytest.mark.parametrize(
    "path", [p for p in PATHS if p.endswith((f"{0:012d}", files.HEADER, *files.CARRIED))]
)
def test_every_byte_of_the_first_records_counts(path: str) -> None:
    for place in range(len(RUN[path])):
        refused(flipped(path, place, place % 8))


@given(paths, places)
@settings(max_examples=60, deadline=None)
def test_truncation_is_found(path: str, place: float) -> None:
    refused({**RUN, path: RUN[path][: int(place * len(RUN[path]))]})


@given(paths, places, st.binary(min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_insertion_is_found(path: str, place: float, extra: bytes) -> None:
    cut = int(place * (len(RUN[path]) + 1))
    refused({**RUN, path: RUN[path][:cut] + extra + RUN[path][cut:]})


@pytest.mark.parametrize("path", PATHS)
def test_a_huge_file_is_refused_before_it_is_read(tmp_path: Path, path: str) -> None:
    write_files(tmp_path, RUN)
    os.truncate(tmp_path / path, 1 << 40)  # bytes; sparse, it would not fit into memory
    with pytest.raises(TranscriptError, match=rf"^{path}: expected (at most )?\d+ bytes, got more"):
        verify_all(tmp_path)


def test_a_segment_of_nested_nothing_is_refused_within_bounds(tmp_path: Path) -> None:
    path = files.segment_path(0)
    items = LIMITS.record_bytes - 5
    hostile = b"\x9a" + items.to_bytes(4, "big") + b"\x80" * items
    write_files(tmp_path, {**RUN, path: hostile})
    with pytest.raises(TranscriptError, match=rf"^{path}: expected an array of 1 to"):
        Transcript.open(tmp_path)


@given(paths, paths)
@settings(max_examples=60, deadline=None)
def test_swapped_and_copied_files_are_found(first: str, second: str) -> None:
    if RUN[first] != RUN[second]:
        refused({**RUN, first: RUN[second], second: RUN[first]})
        refused({**RUN, first: RUN[second]})


@pytest.mark.parametrize("path", files.CARRIED)
def test_what_is_carried_may_be_missing(path: str, tmp_path: Path) -> None:
    run = {name: data for name, data in RUN.items() if name != path}
    transcript = verify_all(write_files(tmp_path, run))
    assert transcript.carried == tuple(name for name in files.CARRIED if name != path)
    assert (transcript.sources() is None, transcript.records() is None) == (
        path == files.SOURCES,
        path == files.RECORDS,
    )


@pytest.mark.parametrize("path", [path for path in PATHS if path not in files.CARRIED])
def test_a_missing_file_is_found(path: str) -> None:
    error = refused({name: data for name, data in RUN.items() if name != path})
    assert path in str(error) or path.startswith("signatures/")  # then its files are too many


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "name",
    [
        "{0}.bak",
        "{0} ",
        "x{0}",
        "leaves/000000000001",
        "leaves/000000000009",
        "leaves/0",
        "leaves/00000000000٣",
        "signatures/000000000003.manifest",
        "checkpoints/000000000002",
        "checkpoints/000000000009.safetensors",
        "rounding/000000000000",
        "Header",
        ".tmp-",
        ".tmp-0",
        "elsewhere/.tmp-0",
    ],
)
def test_a_renamed_or_an_additional_file_is_found(path: str, name: str) -> None:
    new = name.format(path)
    rest = {old: data for old, data in RUN.items() if old != path}
    refused({**rest, new: RUN[path]})
    refused({**RUN, new: RUN[path]})


@pytest.mark.parametrize("path", [path for path in PATHS if path in OTHER_RUN])
def test_a_file_of_another_run_of_the_same_job_is_found(path: str) -> None:
    if OTHER_RUN[path] != RUN[path]:
        refused({**RUN, path: OTHER_RUN[path]})


def test_a_changed_weight_is_named_with_step_and_digests(tmp_path: Path) -> None:
    path = files.pack_path(0)
    run = flipped(path, len(RUN[path]) - 1, 0)
    transcript = Transcript.open(write_files(tmp_path, run))
    transcript.verify_signatures()
    transcript.verify_chain()
    message = (
        r"^step 0: tensor '[a-z/ ]+' in checkpoints/.*: expected [0-9a-f]{64}, got [0-9a-f]{64}$"
    )
    for method in (transcript.verify_checkpoint, transcript.load_state):
        with pytest.raises(VerificationError, match=message):
            method(0)


def test_a_tensor_in_an_older_pack_is_checked_for_every_checkpoint_that_needs_it(
    tmp_path: Path,
) -> None:
    path = files.pack_path(0)
    pack = bytearray(RUN[path])
    place = pack.index(b"\x00\x00\x00\x3f" * 4)  # model/frozen, four times 0.5
    pack[place] ^= 1
    transcript = Transcript.open(write_files(tmp_path, {**RUN, path: bytes(pack)}))
    for step in COMMITS:
        with pytest.raises(VerificationError, match="tensor 'model/frozen'"):
            transcript.load_state(step)
        with pytest.raises(VerificationError, match="tensor 'model/frozen'"):
            transcript.verify_checkpoint(step)


LARGE = 64 << 20  # bytes


def large_run(folder: Path, fill: int) -> Transcript:
    """A run of one large tensor, its pack a sparse file of zeros."""
    state = {"big": torch.full((LARGE,), fill, dtype=torch.uint8)}
    entries = state_entries(state)
    writer = TranscriptWriter.create(folder, make_header(), SIGNER)
    writer.append(state=state_root(entries), batch=None, loss=None)
    writer.commit(state, entries)
    pack = folder / files.pack_path(0)
    os.truncate(pack, pack.stat().st_size - LARGE)
    os.truncate(pack, pack.stat().st_size + LARGE)
    return Transcript.open(folder)


def test_a_content_is_hashed_in_parts(tmp_path: Path) -> None:
    transcript = large_run(tmp_path, 0)
    tracemalloc.start()
    try:
        transcript.verify_checkpoint(0)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_no_tensor_is_made_for_a_content_that_the_pack_does_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcript = large_run(tmp_path, 1)
    monkeypatch.setattr(tensors, "empty", lambda entry: pytest.fail(f"{entry.name} was made"))
    for method in (transcript.verify_checkpoint, transcript.load_state):
        with pytest.raises(VerificationError, match="step 0: tensor 'big' in checkpoints"):
            method(0)


def test_a_caller_can_refuse_a_state_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transcript = Transcript.open(write_files(tmp_path, RUN))
    seen: list[TensorEntry] = []
    assert transcript.load_state(0, check=seen.extend).keys() == {entry.name for entry in seen}

    def refuse(entries: tuple[TensorEntry, ...]) -> None:
        raise VerificationError(f"{entries[0].name} is not welcome")

    monkeypatch.setattr(LocalStore, "open_file", lambda *_: pytest.fail("a pack was opened"))
    with pytest.raises(VerificationError, match="model/frozen is not welcome"):
        transcript.load_state(0, check=refuse)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't allocate memory")])
def test_a_tensor_that_does_not_fit_into_memory_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def empty(entry: TensorEntry) -> None:
        raise error

    transcript = Transcript.open(write_files(tmp_path, RUN))
    monkeypatch.setattr(tensors, "empty", empty)
    path = files.pack_path(0)
    with pytest.raises(TranscriptError, match=rf"^{path}: tensor 'model/frozen': no memory for"):
        transcript.load_state(0)


def test_manifests_are_read_a_few_times_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step changes another tensor, so that the last state lies in as many packs."""
    count = 12
    state = {f"{index:02d}": torch.tensor(-index) for index in range(count)}
    writer = TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    for step in range(count):
        state[f"{step:02d}"] = torch.tensor(100 + step)
        entries = state_entries(state)
        batch, loss = (bytes(32), 0.5) if step else (None, None)
        writer.append(state=state_root(entries), batch=batch, loss=loss)
        writer.commit(dict(state), entries)
    transcript = Transcript.open(tmp_path)
    reads: list[str] = []
    read = LocalStore.read

    def counting(store: LocalStore, path: str, limit: int) -> bytes:
        reads.append(path)
        return read(store, path, limit)

    monkeypatch.setattr(LocalStore, "read", counting)
    for step in range(count):
        transcript.verify_checkpoint(step)
    assert len(reads) <= 2 * count
    assert torch.equal(transcript.load_state(count - 1)["00"], torch.tensor(100))
