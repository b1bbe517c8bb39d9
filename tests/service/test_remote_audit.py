"""Audits of a run at an HTTP address, from end to end, and what they fetch."""

from __future__ import annotations

import json

import pytest

import veritrain as vt
from tests.service.conftest import TOKEN
from tests.service.faulty import breaks_after, faulty, says
from tests.service.running import running
from veritrain.cli import main
from veritrain.errors import TranscriptError
from veritrain.transcript import Transcript


@pytest.fixture(scope="module")
def job(home):
    return vt.load_job(home / "job.py")


@pytest.fixture
def server(contents):
    with faulty(dict(contents)) as one:
        yield one


def fetched(service, action):
    """Paths that the service shows while `action` runs."""
    before = len(service.log())
    result = action()
    lines = [line.split() for line in service.log()[before:]]
    assert all(status == "200" for *_, status, _ in lines)
    return [path for _, _, path, *_ in lines], result


def packs(paths):
    return sorted(path for path in paths if path.endswith(".safetensors"))


def test_a_whole_audit_fetches_each_file_once(service, home, contents, job):
    paths, report = fetched(service, lambda: vt.audit(service.url, job))
    assert report.verdict is vt.Verdict.ACCEPTED
    assert report.steps_replayed == 12
    assert sorted(paths) == sorted(["/files", *(f"/{path}" for path in contents)])
    assert report.root == vt.audit(home / "run", job).root


def test_a_sample_fetches_only_its_checkpoints(service, job):
    paths, report = fetched(service, lambda: vt.audit(service.url, job, sample=1))
    assert report.verdict is vt.Verdict.ACCEPTED
    assert report.steps_replayed == 2
    assert set(packs(paths)) in [needed(service.url, stop - 2, stop) for stop in range(2, 13, 2)]
    assert "of 7 stored states are whole" in report.checks[6].detail


def test_steps_fetch_only_their_checkpoints(service, contents, job):
    paths, report = fetched(service, lambda: vt.audit(service.url, job, steps=(7, 8)))
    assert report.verdict is vt.Verdict.ACCEPTED
    assert set(packs(paths)) == needed(service.url, 6, 8)
    assert report.checks[6].detail == "2 of 7 stored states are whole"


def needed(url, *ends):
    """The packs of these checkpoints, and the older ones with what did not change since."""
    transcript = Transcript.open(url)
    steps = {step for step in ends if step > 0}
    steps |= {pack for step in steps for pack in transcript.checkpoint(step).packs}
    return {f"/checkpoints/{step:012d}.safetensors" for step in steps}


def test_what_is_stored_is_checked_as_far_as_asked_for(service, home, job):
    paths, report = fetched(service, lambda: vt.audit(service.url, job, steps=(7, 8), stored="all"))
    assert len(packs(paths)) == 7
    assert report.checks[6].detail == "7 stored states are whole"
    for stored, detail in ((None, "7 stored"), ("all", "7 stored"), ("needed", "2 of 7 stored")):
        report = vt.audit(home / "run", job, steps=(7, 8), stored=stored)
        assert report.verdict is vt.Verdict.ACCEPTED
        assert report.checks[6].detail.startswith(detail)
    with pytest.raises(vt.UsageError, match="stored: expected all or needed"):
        vt.audit(home / "run", job, stored="some")


def test_the_first_steps_need_no_stored_start(service, job):
    paths, report = fetched(service, lambda: vt.audit(service.url, job, steps=(1, 1)))
    assert report.verdict is vt.Verdict.ACCEPTED
    assert packs(paths) == []
    assert report.checks[6].detail == "0 of 7 stored states are whole"


def test_show_fetches_no_pack(service, home, contents, capfd):
    paths, code = fetched(service, lambda: main(["show", service.url, "--json"]))
    remote = json.loads(capfd.readouterr().out)
    assert code == 0
    assert packs(paths) == []
    assert paths.count("/files") == 1
    assert main(["show", str(home / "run"), "--json"]) == 0
    local = json.loads(capfd.readouterr().out)
    assert {**remote, "location": ""} == {**local, "location": ""}
    assert remote["location"] == service.url


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_the_command_with_tls_and_token(home, certificate, tmp_path, capfd, monkeypatch, workers):
    monkeypatch.delenv("VERITRAIN_TOKEN", raising=False)
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    words = [str(part) for part in certificate]
    with running(home / "run", token=TOKEN, certificate=words) as private:
        audit = ["audit", private.url, "--job", str(home / "job.py"), "--processes", workers]
        assert main([*audit, "--ca", words[0], "--token-file", str(token)]) == 0
        out, err = capfd.readouterr()
        assert out.splitlines()[-1] == "ACCEPTED: 12 of 12 steps recomputed to the same bits"
        assert main(["show", private.url, "--ca", words[0]]) == 2
        assert "does it want another token?" in capfd.readouterr().err
        assert main(["show", private.url, "--token-file", str(token)]) == 2
        assert "--ca" in capfd.readouterr().err
        assert TOKEN not in out + err + "".join(private.log())


def test_broken_connections_do_not_show_in_the_verdict(server, contents, job):
    for path in sorted(contents)[::8]:
        server.faults[path] = [breaks_after(len(contents[path]) // 2), says(503)]
    report = vt.audit(server.url, job)
    assert report.verdict is vt.Verdict.ACCEPTED


@pytest.mark.parametrize("place", [0.2, 0.9])
@pytest.mark.parametrize("kind", ["leaves/", "manifest", "safetensors", "signatures/", "header"])
def test_one_changed_bit_is_found(server, contents, job, kind, place):
    path = sorted(path for path in contents if kind in path)[-1]
    data = bytearray(contents[path])
    data[int(place * len(data))] ^= 4
    server.contents[path] = bytes(data)
    try:
        verdict = vt.audit(server.url, job).verdict
    except TranscriptError as error:
        verdict, where = None, error.where
    assert verdict is vt.Verdict.REJECTED or where.startswith(path)


def test_what_the_list_lacks_or_has_too_much(server, contents, job):
    del server.contents["leaves/000000000006"]
    with pytest.raises(TranscriptError, match="leaves/000000000006: missing"):
        vt.audit(server.url, job)
    server.contents = {**contents, "leaves/000000000007": b"x"}
    with pytest.raises(TranscriptError, match="no signed head covers this file"):
        vt.audit(server.url, job)
    server.contents = dict(contents)
    server.faults["checkpoints/000000000006.safetensors"] = [says(404)]
    with pytest.raises(TranscriptError, match=r"checkpoints/000000000006.safetensors: missing"):
        vt.audit(server.url, job)


def test_a_pack_that_is_swapped_after_it_was_checked_does_no_harm(server, contents, job):
    """It was fetched once; what was checked is what is used."""
    report = vt.audit(server.url, job, steps=(3, 4))
    assert report.verdict is vt.Verdict.ACCEPTED
    paths = [request.path for request in server.requests]
    assert len(paths) == len(set(paths))


def test_what_a_run_carries_is_fetched_where_it_explains_something(service, home, tmp_path):
    """A sample of an honest run needs the sources alone; a difference of records, their digests."""
    text = (home / "job.py").read_text()
    (tmp_path / "job.py").write_text(text)
    job = vt.load_job(tmp_path / "job.py")
    paths, _ = fetched(service, lambda: vt.audit(service.url, job, steps=(1, 2)))
    assert "/sources" in paths
    assert "/records" not in paths
    dataset = [*job.dataset]
    dataset[7] = (dataset[7][0] + 1, dataset[7][1])
    other = vt.Job(**{**vars(job), "dataset": dataset})
    paths, report = fetched(service, lambda: vt.audit(service.url, other, steps=(1, 2)))
    assert paths.count("/records") == 1
    assert (
        report.verdict_line()
        == "REJECTED: record 7 differs: of the same form, (tensor float32 [4], tensor int64 []),"
        " with "
        "other values"
    )
    (tmp_path / "job.py").write_text(text.replace("lr=0.05", "lr=0.5"))
    report = vt.audit(service.url, vt.load_job(tmp_path / "job.py"))
    assert report.verdict_line().startswith("REJECTED: 'job.py' differs in line ")
