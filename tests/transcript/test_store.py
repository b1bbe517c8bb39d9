from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.transcript import locks
from veritrain.transcript import store as store_module
from veritrain.transcript.limits import Limits
from veritrain.transcript.store import LocalStore, RemoteStore, Store
from veritrain.transcript.stores import open_store


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "local":
        yield open_store(tmp_path / "run")
        return
    url = f"memory://{tmp_path.name}"
    yield open_store(url)
    system = fsspec.filesystem("memory")
    if system.exists(url):
        system.rm(url, recursive=True)


def test_paths_and_file_urls_are_local_and_others_remote(tmp_path: Path) -> None:
    assert isinstance(open_store(tmp_path), LocalStore)
    assert isinstance(open_store(str(tmp_path)), LocalStore)
    assert isinstance(open_store(f"file://{tmp_path}"), LocalStore)
    assert isinstance(open_store("memory://x"), RemoteStore)


def test_files_come_back_sorted_and_whole(store: Store) -> None:
    assert store.list() == []
    store.write("b", [b"12", memoryview(b"345"), b""])
    store.write("leaves/2", [])
    store.write("leaves/1", [b"x"])
    assert store.list() == ["b", "leaves/1", "leaves/2"]
    assert store.total_bytes() == 6
    assert store.read("b", 5) == b"12345"
    assert store.read("leaves/2", 0) == b""
    with store.open_file("b", 5) as file:
        file.seek(3)
        assert file.read() == b"45"
    store.delete("leaves/1")
    assert store.list() == ["b", "leaves/2"]


def test_a_file_is_written_once(store: Store) -> None:
    store.write("a", [b"first"])
    with pytest.raises(UsageError, match="a: exists already"):
        store.write("a", [b"second"])
    assert store.read("a", 10) == b"first"
    assert store.list() == ["a"]


def test_reads_are_bounded_and_missing_files_named(store: Store) -> None:
    store.write("a", [b"12345"])
    with pytest.raises(TranscriptError, match=r"^a: expected at most 4 bytes"):
        store.read("a", 4)
    with (
        pytest.raises(TranscriptError, match=r"^a: expected 4 bytes, got"),
        store.open_file("a", 4),
    ):
        pass
    with (
        pytest.raises(TranscriptError, match=r"^a: expected 6 bytes, got 5"),
        store.open_file("a", 6),
    ):
        pass
    with pytest.raises(TranscriptError, match=r"^b: missing"):
        store.read("b", 4)
    with pytest.raises(TranscriptError, match=r"^b: missing"), store.open_file("b", 4):
        pass
    with pytest.raises(UsageError, match="b: cannot be deleted"):
        store.delete("b")


def test_errors_of_the_reader_of_a_file_stay_what_they_are(store: Store) -> None:
    store.write("a", [b"12345"])
    for error in (VerificationError("mine"), KeyError("mine")):
        with pytest.raises(type(error), match="mine"), store.open_file("a", 5):
            raise error


@pytest.mark.parametrize(
    "path", ["../x", "a/../x", "/etc/passwd", "a/b/c", ".", "..", "", "a/", "a\0", "a\n", "é", "~"]
)
def test_paths_cannot_leave_the_folder(store: Store, path: str) -> None:
    actions: list[Callable[[], object]] = [
        lambda: store.read(path, 1),
        lambda: store.write(path, [b""]),
        lambda: store.delete(path),
        lambda: store.open_file(path, 1).__enter__(),
    ]
    for action in actions:
        with pytest.raises(UsageError, match="is not the path of a file of a run"):
            action()
    assert store.list() == []


def test_too_many_files_are_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "LIMITS", Limits(files=3))
    for index in range(3):
        store.write(f"leaves/{index}", [b""])
    assert len(store.list()) == 3
    store.write("b", [b""])
    with pytest.raises(TranscriptError, match="expected at most 3 files"):
        store.list()


def test_a_folder_in_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "leaves" / "b").mkdir(parents=True)
    with pytest.raises(TranscriptError, match=r"'leaves/b': a folder, expected a file"):
        open_store(tmp_path).list()


def test_remote_folders_are_not_deep() -> None:
    fsspec.filesystem("memory").pipe_file("/deep/leaves/b/c", b"")
    with pytest.raises(TranscriptError, match=r"'leaves/b': a folder, expected a file"):
        open_store("memory://deep").list()


@pytest.mark.parametrize("target", [".", "..", "link", "/etc/passwd", "missing", "real"])
@pytest.mark.parametrize("link", ["link", "leaves/link"])
def test_links_are_refused_wherever_they_point(tmp_path: Path, target: str, link: str) -> None:
    (tmp_path / "leaves").mkdir()
    (tmp_path / "real").write_bytes(b"x")
    (tmp_path / link).symlink_to(target)
    store = open_store(tmp_path)
    with pytest.raises(TranscriptError, match="a symbolic link"):
        store.list()
    with pytest.raises(TranscriptError, match=r"cannot be read|missing"):
        store.read(link, 100)


def test_a_linked_folder_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a").write_bytes(b"secret")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "leaves").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TranscriptError, match="cannot be read"):
        open_store(tmp_path / "run").read("leaves/a", 100)


def test_the_run_itself_may_be_given_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a").write_bytes(b"x")
    (tmp_path / "latest").symlink_to("run")
    assert open_store(tmp_path / "latest").list() == ["a"]
    assert open_store(tmp_path / "latest").read("a", 1) == b"x"


def test_pipes_and_sockets_neither_pass_nor_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    store = open_store(tmp_path)
    with pytest.raises(TranscriptError, match="'pipe': a special file"):
        store.list()
    with pytest.raises(TranscriptError, match="pipe: a special file"):
        store.read("pipe", 10)
    (tmp_path / "pipe").unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        with pytest.raises(TranscriptError, match="'s': a special file"):
            store.list()


def test_names_that_are_not_text_are_shown_safely(tmp_path: Path) -> None:
    os.symlink("x", os.fsencode(tmp_path) + b"/\xff\x1b[31m")
    with pytest.raises(TranscriptError, match="symbolic link") as caught:
        open_store(tmp_path).list()
    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def parts() -> Iterator[bytes]:
        yield b"half"
        raise KeyboardInterrupt

    store = open_store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        store.write("leaves/b", parts())
    assert store.list() == []


def test_a_run_that_is_a_file_and_a_folder_that_is_a_file_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = open_store(tmp_path / "file")
    with pytest.raises(TranscriptError, match="cannot be listed"):
        store.list()
    with pytest.raises(TranscriptError, match="cannot be read"):
        store.read("a", 1)
    with pytest.raises(UsageError, match="cannot be written"):
        store.write("a", [b""])


@pytest.mark.parametrize("url", ["nosuchprotocol://x", "simplecache::nosuch://x"])
def test_unknown_kinds_of_urls_are_usage_errors(url: str) -> None:
    with pytest.raises(UsageError, match="cannot be opened"):
        open_store(url)


@pytest.mark.parametrize("name", ["roundings", "Leaves", ".git", ".tmp-0f", "header", "leaves "])
def test_a_folder_that_no_run_has_is_refused_even_if_it_is_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / "leaves").mkdir(exist_ok=True)
    with pytest.raises(TranscriptError, match=rf"^'{name}': unexpected folder"):
        open_store(tmp_path).list()


def test_a_remote_folder_that_no_run_has_is_refused() -> None:
    fsspec.filesystem("memory").makedirs("/odd/roundings")
    with pytest.raises(TranscriptError, match="'roundings': unexpected folder"):
        open_store("memory://odd").list()


def test_the_folders_of_a_run_may_be_empty(tmp_path: Path) -> None:
    for name in store_module.FOLDERS:
        (tmp_path / name).mkdir()
    assert open_store(tmp_path).list() == []


def test_a_local_folder_has_one_writer(tmp_path: Path) -> None:
    first, second = open_store(tmp_path / "run"), open_store(tmp_path / "run")
    second.unlock()
    first.lock()
    for store in (second, first):
        with pytest.raises(UsageError, match="is being written by another process or recorder"):
            store.lock()
    assert first.list() == []
    first.unlock()
    second.lock()
    del second
    first.lock()


def test_the_lock_ends_with_its_process_even_if_a_worker_lives_on(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        store = open_store(tmp_path)
        store.lock()
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
        os.write(writer, worker.to_bytes(4, "little"))
        time.sleep(60)
        os._exit(0)
    worker = int.from_bytes(os.read(reader, 4), "little")
    try:
        with pytest.raises(UsageError, match="is being written"):
            open_store(tmp_path).lock()
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        open_store(tmp_path).lock()
    finally:
        os.kill(worker, signal.SIGKILL)


def test_a_file_system_without_locks_is_used_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    code = errno.ENOLCK
    open_store(tmp_path).lock()
    code = errno.EIO
    with pytest.raises(UsageError, match="cannot be written"):
        open_store(tmp_path).lock()
