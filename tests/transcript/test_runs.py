"""Writing and reading whole runs: round trips, deduplication, resuming after any crash."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import fsspec
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builder import (
    COMMITS,
    OTHER_SIGNER,
    SIGNER,
    Files,
    continue_run,
    make_header,
    make_run,
    read_files,
    state_at,
    verify_all,
    write_files,
)
from safetensors import safe_open
from safetensors.torch import load, save

from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.transcript import files
from veritrain.transcript import writer as writer_module
from veritrain.transcript.limits import Limits
from veritrain.transcript.packs import pack_layout
from veritrain.transcript.reader import Transcript
from veritrain.transcript.records import TensorEntry
from veritrain.transcript.store import Store
from veritrain.transcript.stores import open_store
from veritrain.transcript.tensors import content, state_entries, state_root
from veritrain.transcript.writer import TranscriptWriter

LAST = COMMITS[-1]


def assert_same_state(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype
        assert tensor.shape == right[name].shape
        assert bytes(content(tensor)) == bytes(content(right[name]))


def test_a_run_reads_back_as_it_was_written(tmp_path: Path, honest_run: Files) -> None:
    transcript = verify_all(write_files(tmp_path, honest_run))
    assert transcript.header == make_header()
    assert transcript.checkpoint_steps == COMMITS
    assert [signed.head.step for signed in transcript.heads] == list(COMMITS)
    assert [leaf.step for leaf in transcript.leaves] == list(range(LAST + 1))
    assert transcript.leaves[2].loss == 0.5
    assert transcript.leftovers == ()
    assert transcript.location == str(tmp_path)
    for step in COMMITS:
        assert_same_state(transcript.load_state(step), state_at(step))


def test_the_files_are_those_of_the_format(honest_run: Files) -> None:
    expected = {"header"} | {path for step in COMMITS for path in files.commit_paths(step)}
    assert set(honest_run) == expected


def test_a_run_works_at_a_remote_store_too() -> None:
    url = "memory://runs/remote"
    writer = TranscriptWriter.create(url, make_header(), SIGNER)
    continue_run(writer, 2)
    continue_run(TranscriptWriter.resume(url, make_header(), SIGNER), LAST)
    transcript = verify_all(url)
    assert_same_state(transcript.load_state(LAST), state_at(LAST))
    system = fsspec.filesystem("memory")
    honest = make_run()
    assert {path: system.cat_file(f"/runs/remote/{path}") for path in honest} == honest
    system.rm("/runs/remote", recursive=True)


def test_loaded_tensors_share_no_memory(tmp_path: Path, honest_run: Files) -> None:
    state = Transcript.open(write_files(tmp_path, honest_run)).load_state(0)
    state["model/weight"].add_(1)
    state["optimizer/zeros"].add_(1)
    assert torch.equal(state["model/tied"], state_at(0)["model/tied"])
    assert torch.equal(state["optimizer/zeros as a column"], torch.zeros(2, 1))


def test_equal_contents_are_stored_once(honest_run: Files) -> None:
    first = load(honest_run[files.pack_path(0)])
    entries = state_entries(state_at(0))
    assert set(first) == {entry.digest.hex() for entry in entries}
    assert len(first) < len(entries)  # tied weights, zeros of two shapes
    changed = {entry.digest for entry in state_entries(state_at(2))} - {e.digest for e in entries}
    assert set(load(honest_run[files.pack_path(2)])) == {digest.hex() for digest in changed}


def test_an_unchanged_state_makes_an_empty_pack(tmp_path: Path) -> None:
    writer = TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    state = state_at(0)
    entries = state_entries(state)
    writer.append(state=state_root(entries), batch=None, loss=None)
    writer.commit(state, entries)
    writer.append(state=state_root(entries), batch=bytes(32), loss=1.0)
    writer.commit(state, entries)
    assert load((tmp_path / files.pack_path(1)).read_bytes()) == {}
    assert_same_state(verify_all(tmp_path).load_state(1), state)


@given(st.lists(st.binary(max_size=40), max_size=6, unique=True))
@settings(max_examples=40, deadline=None)
def test_a_pack_is_what_the_safetensors_library_writes(contents: list[bytes]) -> None:
    entries = {
        entry.digest: data
        for data in contents
        for entry in state_entries({"x": torch.tensor(list(data), dtype=torch.uint8)})
    }
    layout = pack_layout({digest: len(data) for digest, data in entries.items()})
    pack = layout.header + b"".join(entries[digest] for digest in layout.spans)
    assert len(pack) == layout.total_bytes
    tensors = {
        digest.hex(): torch.tensor(list(data), dtype=torch.uint8)
        for digest, data in entries.items()
    }
    assert pack == save(tensors)
    for digest, (start, size) in layout.spans.items():
        assert pack[start : start + size] == entries[digest]


def test_a_pack_has_no_metadata(tmp_path: Path, honest_run: Files) -> None:
    path = write_files(tmp_path, honest_run) / files.pack_path(0)
    with safe_open(path, "pt") as pack:
        assert pack.metadata() is None


def test_writer_reports_where_it_stands(tmp_path: Path) -> None:
    writer = TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    assert (writer.last_step, writer.next_step, writer.last_head) == (-1, 0, None)
    continue_run(writer, 1)
    assert (writer.last_step, writer.next_step) == (0, 2)
    continue_run(writer, 2)
    assert (writer.last_step, writer.next_step) == (2, 3)
    assert writer.last_head == Transcript.open(tmp_path).heads[-1].head


def test_create_refuses_a_folder_with_files(tmp_path: Path, honest_run: Files) -> None:
    write_files(tmp_path / "run", honest_run)
    write_files(tmp_path / "other", {"notes.txt": b""})
    for folder in ("run", "other"):
        with pytest.raises(UsageError, match="holds files already"):
            TranscriptWriter.create(tmp_path / folder, make_header(), SIGNER)
    assert read_files(tmp_path / "run") == honest_run
    TranscriptWriter.create(
        write_files(tmp_path / "torn", {".tmp-0f": b"half"}), make_header(), SIGNER
    )
    assert list(read_files(tmp_path / "torn")) == ["header"]


def test_the_key_must_be_the_header_s(tmp_path: Path, honest_run: Files) -> None:
    write_files(tmp_path / "run", honest_run)
    for begin in (TranscriptWriter.create, TranscriptWriter.resume):
        with pytest.raises(UsageError, match="key"):
            begin(tmp_path / "run", make_header(), OTHER_SIGNER)
    with pytest.raises(UsageError, match="cannot resume: public_key"):
        TranscriptWriter.resume(tmp_path / "run", make_header(OTHER_SIGNER), OTHER_SIGNER)


def test_resume_names_what_differs_in_the_header(tmp_path: Path, honest_run: Files) -> None:
    write_files(tmp_path, honest_run)
    for field, value in [("numerics", "native"), ("dataset_root", bytes(32)), ("job", {})]:
        with pytest.raises(UsageError, match=f"cannot resume: {field} "):
            TranscriptWriter.resume(tmp_path, replace(make_header(), **{field: value}), SIGNER)
    job = {"config": {"seed": 8, "rate": 0.1}, "sources": {"job.py": bytes(32), "x.py": b"\1" * 32}}
    with pytest.raises(UsageError) as caught:
        TranscriptWriter.resume(tmp_path, replace(make_header(), job=job), SIGNER)
    assert (
        str(caught.value)
        == "cannot resume: job is not what the run began with: config: seed: expected 7, got 8; "
        f"sources: x.py: expected nothing, got {'01' * 32}"
    )
    assert read_files(tmp_path) == honest_run


@pytest.mark.parametrize(("setting", "value"), [("seed", 7.0), ("rate", -0.0)])
def test_resume_tells_settings_of_another_type_or_sign(
    tmp_path: Path, setting: str, value: float
) -> None:
    job = {"config": {"seed": 7, "rate": 0.0}, "sources": {"job.py": bytes(32)}}
    with TranscriptWriter.create(tmp_path, replace(make_header(), job=job), SIGNER) as writer:
        continue_run(writer, 2)
    given = {**job, "config": {**job["config"], setting: value}}
    expected = f"cannot resume: job .*: config: {setting}: expected {job['config'][setting]}, got"
    with pytest.raises(UsageError, match=f"{expected} {value}"):
        TranscriptWriter.resume(tmp_path, replace(make_header(), job=given), SIGNER)


def test_a_run_that_is_being_written_is_not_resumed(tmp_path: Path) -> None:
    with TranscriptWriter.create(tmp_path, make_header(), SIGNER) as writer:
        continue_run(writer, 2)
        before = read_files(tmp_path)
        for begin in (TranscriptWriter.resume, TranscriptWriter.create):
            with pytest.raises(UsageError, match="is being written by another process"):
                begin(tmp_path, make_header(), SIGNER)
        assert read_files(tmp_path) == before
        Transcript.open(tmp_path).verify_chain()
        continue_run(writer, LAST)
    with TranscriptWriter.resume(tmp_path, make_header(), SIGNER) as second:
        assert second.last_step == LAST


def test_a_writer_that_could_not_begin_holds_no_lock(tmp_path: Path, honest_run: Files) -> None:
    write_files(tmp_path, honest_run)
    with pytest.raises(UsageError, match="holds files already") as first:
        TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    with pytest.raises(UsageError, match="cannot resume") as second:
        TranscriptWriter.resume(tmp_path, make_header(seed=1), SIGNER)
    TranscriptWriter.resume(tmp_path, make_header(), SIGNER)
    del first, second  # their tracebacks kept the writers


def test_a_closed_writer_commits_nothing(tmp_path: Path) -> None:
    writer = TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    continue_run(writer, 1)
    writer.close()
    writer.close()
    with pytest.raises(UsageError, match="the writer is closed"):
        continue_run(writer, 2)
    assert Transcript.open(tmp_path).checkpoint_steps == (0,)


def test_what_another_writer_committed_is_never_deleted() -> None:
    """Where there is no lock, the second writer fails, however often it tries."""
    url = "memory://runs/two-writers"
    first = TranscriptWriter.create(url, make_header(), SIGNER)
    continue_run(first, 0)
    second = TranscriptWriter.resume(url, make_header(), SIGNER)
    continue_run(first, 2)
    with pytest.raises(UsageError, match="exists already"):
        continue_run(second, 2)
    for _ in range(2):
        with pytest.raises(UsageError, match="exists already"):
            second.commit(state_at(2), state_entries(state_at(2)))
    continue_run(first, LAST)
    assert verify_all(url).checkpoint_steps == COMMITS
    fsspec.filesystem("memory").rm("/runs/two-writers", recursive=True)


def test_a_head_of_someone_else_is_neither_deleted_nor_taken_over(tmp_path: Path) -> None:
    TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    store = FailingStore(open_store(tmp_path), 3, after=True)
    writer = TranscriptWriter(store, make_header(), SIGNER)
    with pytest.raises(KeyboardInterrupt):
        continue_run(writer, 0)
    (tmp_path / files.signature_path(0)).write_bytes(b"theirs")
    before = read_files(tmp_path)
    with pytest.raises(UsageError, match="written by someone else"):
        writer.commit(state_at(0), state_entries(state_at(0)))
    assert read_files(tmp_path) == before


@pytest.mark.parametrize("path", [f"leaves/{0:012d}", f"checkpoints/{LAST:012d}.safetensors"])
def test_resume_refuses_a_run_that_was_changed(
    tmp_path: Path, honest_run: Files, path: str
) -> None:
    run = dict(honest_run)
    run[path] = run[path][:-1] + bytes([run[path][-1] ^ 1])
    write_files(tmp_path, run)
    with pytest.raises((TranscriptError, VerificationError)):
        TranscriptWriter.resume(tmp_path, make_header(), SIGNER)
    assert read_files(tmp_path) == run


def write_order() -> list[str]:
    return ["header", *(path for step in COMMITS for path in files.commit_paths(step))]


@pytest.mark.parametrize("torn", [True, False], ids=["a file half written", "between two files"])
@pytest.mark.parametrize("count", range(len(COMMITS) * 4 + 2))
def test_resume_after_a_crash_at_any_write_gives_the_same_bytes(
    tmp_path: Path, honest_run: Files, count: int, *, torn: bool
) -> None:
    order = write_order()
    write_files(tmp_path, {path: honest_run[path] for path in order[:count]})
    if torn and count < len(order):
        folder = (tmp_path / order[count]).parent
        folder.mkdir(parents=True, exist_ok=True)
        data = honest_run[order[count]]
        (folder / ".tmp-0123456789abcdef").write_bytes(data[: len(data) // 2])
    if count > 0:
        commits = (count - 1) // 4
        transcript = Transcript.open(tmp_path)
        assert transcript.checkpoint_steps == COMMITS[:commits]
        torn_files = 1 if torn and count < len(order) else 0
        assert len(transcript.leftovers) == (count - 1) % 4 + torn_files
    writer = TranscriptWriter.resume(tmp_path, make_header(), SIGNER)
    continue_run(writer, LAST)
    assert read_files(tmp_path) == honest_run


@pytest.mark.parametrize("attempt", range(8))
def test_resume_after_a_kill_at_a_random_moment_gives_the_same_bytes(
    tmp_path: Path, attempt: int
) -> None:
    commits = tuple(range(60))
    child = os.fork()
    if child == 0:
        try:
            continue_run(TranscriptWriter.create(tmp_path, make_header(), SIGNER), 59, commits)
        finally:
            os._exit(0)
    time.sleep(0.01 + 0.03 * attempt)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    writer = TranscriptWriter.resume(tmp_path, make_header(), SIGNER)
    last = max(writer.last_step, 5)
    continue_run(writer, last, commits)
    assert verify_all(tmp_path).checkpoint_steps == tuple(range(last + 1))
    assert read_files(tmp_path) == make_run(last, commits=commits)


def test_a_run_without_a_head_proves_nothing(tmp_path: Path) -> None:
    TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    transcript = Transcript.open(tmp_path)
    assert (transcript.heads, transcript.leaves, transcript.checkpoint_steps) == ((), (), ())
    for verify in (transcript.verify_signatures, transcript.verify_chain):
        with pytest.raises(VerificationError, match="no signed head"):
            verify()
    for method in (transcript.checkpoint, transcript.verify_checkpoint, transcript.load_state):
        with pytest.raises(UsageError, match="step 0 has no checkpoint"):
            method(0)


def test_commit_refuses_what_the_leaf_did_not_record(tmp_path: Path) -> None:
    writer = TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    state = state_at(0)
    entries = state_entries(state)
    with pytest.raises(UsageError, match="committed already"):
        writer.commit(state, entries)
    writer.append(state=state_root(entries), batch=None, loss=None)
    with pytest.raises(UsageError, match="step 0: the state to commit is not the recorded one"):
        writer.commit(state_at(1), state_entries(state_at(1)))
    with pytest.raises(UsageError, match="step 0: the entries are not those of the state"):
        writer.commit({"other": torch.ones(1)}, entries)
    with pytest.raises(UsageError, match="field batch"):
        writer.append(state=state_root(entries), batch=None, loss=1.0)
    assert list(read_files(tmp_path)) == ["header"]
    writer.commit(state, entries)
    with pytest.raises(UsageError, match="step 0 is committed already"):
        writer.commit(state, entries)
    verify_all(tmp_path)


def test_a_tensor_that_changes_during_a_commit_is_never_committed(tmp_path: Path) -> None:
    writer = TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    state = state_at(0)
    entries = state_entries(state)
    writer.append(state=state_root(entries), batch=None, loss=None)
    state["model/frozen"].add_(1)
    with pytest.raises(UsageError, match="tensor 'model/frozen' changed while it was committed"):
        writer.commit(state, entries)
    assert list(read_files(tmp_path)) == ["header"]
    state["model/frozen"].sub_(1)
    writer.commit(state, entries)
    verify_all(tmp_path)


class FailingStore(Store):
    """A local store whose disk is full from the n-th write on, after the write or before it."""

    def __init__(self, inner: Store, writes: int, *, after: bool) -> None:
        self.inner, self.writes, self.after = inner, writes, after
        self.location = inner.location

    def write(self, path, parts):
        self.writes -= 1
        if self.writes < 0 and not self.after:
            raise UsageError("disk full")
        self.inner.write(path, parts)
        if self.writes < 0:
            raise KeyboardInterrupt

    def list(self):
        return self.inner.list()

    def read(self, path, limit):
        return self.inner.read(path, limit)

    def open_file(self, path, size):
        return self.inner.open_file(path, size)

    def total_bytes(self):
        return self.inner.total_bytes()

    def delete(self, path):
        self.inner.delete(path)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("writes", range(4))
def test_a_commit_that_failed_can_be_tried_again(
    tmp_path: Path, honest_run: Files, writes: int, *, after: bool
) -> None:
    TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    store = FailingStore(open_store(tmp_path), writes, after=after)
    writer = TranscriptWriter(store, make_header(), SIGNER)
    state = state_at(0)
    entries = state_entries(state)
    writer.append(state=state_root(entries), batch=None, loss=None)
    with pytest.raises((UsageError, KeyboardInterrupt)):
        writer.commit(state, entries)
    store.writes = 1000
    writer.commit(state, entries)
    continue_run(writer, LAST)
    assert read_files(tmp_path) == honest_run


def test_the_writer_keeps_the_limits_of_the_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer_module, "LIMITS", Limits(leaves_per_segment=2))
    writer = TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    continue_run(writer, 1, commits=())
    with pytest.raises(UsageError, match="a commit at least every 2"):
        writer.append(state=bytes(32), batch=bytes(32), loss=0.0)


def test_a_manifest_too_large_to_be_read_is_not_written(tmp_path: Path) -> None:
    writer = TranscriptWriter.create(tmp_path, make_header(), SIGNER)
    names = [f"{index:05d}" + "x" * 1000 for index in range(9000)]
    entries = tuple(
        TensorEntry(name=name, dtype="bool", shape=(0,), digest=bytes(32)) for name in names
    )
    writer.append(state=state_root(entries), batch=None, loss=None)
    with pytest.raises(UsageError, match="checkpoint record: expected at most"):
        writer.commit(dict.fromkeys(names, torch.empty(0)), entries)
    assert list(read_files(tmp_path)) == ["header"]
