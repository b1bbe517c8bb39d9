"""What is shown of a folder: what is committed, and nothing else."""

from __future__ import annotations

import os
import shutil
import time
from contextlib import closing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from veritrain.errors import UsageError
from veritrain.service import served
from veritrain.service.served import ServedRun


@pytest.fixture
def copy(home, tmp_path):
    return shutil.copytree(home / "run", tmp_path / "run")


@pytest.fixture
def impatient(monkeypatch):
    """Looks for new commits at every request."""
    monkeypatch.setattr(served, "_LOOK_SECONDS", 0.0)


def read(run, path):
    opened = run.open(path)
    with closing(opened.file) as file:
        return file.read()


def every_page(run, head=None, limit=5):
    paths, after = [], ""
    while True:
        page = run.page(head=head, after=after, limit=limit)
        head = page.head
        paths += page.entries
        if page.next is None:
            return head, paths
        assert len(page.entries) == limit
        after = page.next


def test_all_files_of_a_finished_run(home, contents):
    run = ServedRun(home / "run")
    for limit in (1, 3, 1000):
        head, entries = every_page(run, limit=limit)
        assert head == 12
        assert entries == [(path, len(data)) for path, data in sorted(contents.items())]
    assert all(read(run, path) == data for path, data in contents.items())


def test_the_list_up_to_an_older_commit(home, contents):
    run = ServedRun(home / "run")
    head, entries = every_page(run, head=4)
    assert head == 4
    assert [path for path, _ in entries] == sorted(
        path
        for path in contents
        if "/" not in path or int(path[-12:] if "." not in path else path[12:24]) <= 4
    )
    for missing in (3, 14, 10**12):
        with pytest.raises(LookupError):
            run.page(head=missing, after="", limit=1)


def test_tags_differ_and_stay(home, contents):
    tags = {}
    for _ in range(2):
        run = ServedRun(home / "run")
        for path in contents:
            opened = run.open(path)
            opened.file.close()
            assert tags.setdefault(path, opened.tag) == opened.tag
    assert len(set(tags.values())) == len(contents)


def test_a_changed_file_has_another_tag(copy):
    run = ServedRun(copy)
    before = run.open("header")
    before.file.close()
    data = bytearray((copy / "header").read_bytes())
    time.sleep(0.02)
    data[-1] ^= 1
    (copy / "header").write_bytes(data)
    after = run.open("header")
    after.file.close()
    assert before.size == after.size
    assert before.tag != after.tag


@pytest.mark.parametrize(
    "path",
    [
        "", "/", "..", "../run/header", "leaves", "leaves/", "leaves/../header", "./header",
        "/etc/passwd",
        "leaves/000000000003", "leaves/00000000002", "leaves/000000000002.manifest",
        "signatures/９" * 12,
        "checkpoints/000000000002", "header/", "header\0", "HEADER", "trainer.key",
        "rounding/000000000002",
        "leaves/.tmp-0f", "leaves/000000000002\n",
    ],
)  # fmt: skip
def test_nothing_else_is_there(home, path):
    with pytest.raises(LookupError):
        ServedRun(home / "run").open(path)


@settings(max_examples=200)
@given(st.text(alphabet="/.%0123456789abcdehlrsv\\\0", max_size=40))
def test_no_name_opens_what_the_list_does_not_have(home, contents, path):
    if path not in contents:
        with pytest.raises(LookupError):
            ServedRun(home / "run").open(path)


def test_leftovers_are_not_shown(copy, contents, impatient):
    for name in ("leaves/000000000014", "checkpoints/000000000014.safetensors", "leaves/.tmp-00ff"):
        (copy / name).write_bytes(b"unfinished")
    run = ServedRun(copy)
    assert [path for path, _ in every_page(run)[1]] == sorted(contents)
    for name in ("leaves/000000000014", "checkpoints/000000000014.safetensors"):
        with pytest.raises(LookupError):
            run.open(name)


def test_links_are_not_followed(copy, impatient):
    run = ServedRun(copy)
    (copy / "leaves" / "000000000002").unlink()
    (copy / "leaves" / "000000000002").symlink_to("/etc/passwd")
    with pytest.raises(LookupError):
        run.open("leaves/000000000002")
    (copy / "header").unlink()
    os.mkfifo(copy / "header")
    with pytest.raises(LookupError):
        run.open("header")


def test_a_run_grows(home, contents, tmp_path, impatient):
    target = tmp_path / "run"
    steps = [0, 2, 4]

    def commit(step):
        for path in contents:
            if f"{step:012d}" in path:
                (target / path).parent.mkdir(parents=True, exist_ok=True)
                (target / path).write_bytes(contents[path])

    target.mkdir()
    (target / "header").write_bytes(contents["header"])
    run = ServedRun(target)
    assert every_page(run) == (None, [("header", len(contents["header"]))])
    for step in steps:
        with pytest.raises(LookupError):
            run.open(f"leaves/{step:012d}")
        commit(step)
        assert read(run, f"leaves/{step:012d}") == contents[f"leaves/{step:012d}"]
        assert every_page(run)[0] == step
    first = every_page(run, head=2)
    commit(6)
    assert every_page(run, head=2) == first
    assert every_page(run)[0] == 6


def test_new_commits_are_seen_soon(home, copy, contents):
    taken = {path: copy / path for path in contents if "000000000012" in path}
    for file in taken.values():
        file.unlink()
    run = ServedRun(copy)
    assert run.page(head=None, after="", limit=1).head == 10
    for path in sorted(taken):
        (copy / path).write_bytes(contents[path])
    deadline = time.monotonic() + 5
    while run.page(head=None, after="", limit=1).head != 12:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_an_unchanged_run_is_listed_once(copy, monkeypatch, impatient):
    os.utime(copy / "signatures", (1e9, 1e9))
    run = ServedRun(copy)
    monkeypatch.setattr(run._store, "list", lambda: 1 / 0)
    assert every_page(run)[0] == 12


def test_a_folder_that_is_no_run_is_refused(tmp_path, copy):
    with pytest.raises(UsageError, match="not a run that can be shown"):
        ServedRun(tmp_path / "nothing")
    with pytest.raises(UsageError, match="not a run that can be shown"):
        ServedRun(tmp_path)
    (copy / "secret.txt").write_bytes(b"x")
    with pytest.raises(UsageError, match="unexpected file"):
        ServedRun(copy)
