"""A rejection says why in its last line: each test trains a run, changes one thing, and audits
it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import veritrain as vt
from tests import jobs
from tests.replay.test_audit import KEY, rewrite
from veritrain.encoding import Value, digest
from veritrain.replay.causes import dataset_cause, settings_cause, sources_cause
from veritrain.replay.compare import compare
from veritrain.replay.header import named_differences
from veritrain.replay.report import AuditReport
from veritrain.replay.texts import difference, variants
from veritrain.transcript import Transcript
from veritrain.transcript.carried import Records

JOB = """\
import os
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import veritrain as vt
from helper import RATE, scaled

HERE = Path(__file__).parent / "corpus"


def data():
    names = sorted(os.listdir(HERE))
    order = os.environ.get("ORDER")
    if order == "listed otherwise":
        names.reverse()
    if order == "a set":
        names = list(set(names))
    texts = [(HERE / name).read_bytes() for name in names]
    rows = torch.tensor([[float(len(text))] * 4 for text in texts]) / 8
    if order == "another dtype":
        rows = rows.double()
    return TensorDataset(scaled(rows), torch.tensor([text[0] % 2 for text in texts]))


def model():
    return nn.Linear(4, 2)


def loss(model, batch):
    return F.cross_entropy(model(batch[0].float()), batch[1])


def job():
    return vt.Job(
        model=model, dataset=data, loss=loss, batch_size=4, steps=2, seed=1,
        optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=RATE),
    )
"""
HELPER = """\
RATE = 0.1  # of learning


def scaled(rows):
    return rows / 2
"""

Change = Callable[[Path], None]


def make(folder: Path) -> Path:
    """A job of two files and a corpus."""
    (folder / "corpus").mkdir(parents=True)
    for index in range(8):
        (folder / "corpus" / f"{index}.txt").write_bytes(b"%d one\ntwo" % index + b"!" * index)
    (folder / "helper.py").write_text(HELPER)
    (folder / "job.py").write_text(JOB)
    return folder / "job.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Two runs of the same job; one is secret."""
    folder = tmp_path_factory.mktemp("trainer")
    job = vt.load_job(make(folder))
    for secret in (False, True):
        vt.train(job, folder / str(secret), signer=KEY, secret=secret)
    return {secret: folder / str(secret) for secret in (False, True)}


def audited(run: Path, job_file: Path) -> AuditReport:
    return vt.audit(run, vt.load_job(job_file))


def edit(name: str, change: Callable[[bytes], bytes]) -> Change:
    def act(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return act


def in_all(names: list[str], change: Callable[[bytes], bytes]) -> Change:
    def act(folder: Path) -> None:
        for name in names:
            edit(name, change)(folder)

    return act


def remove(name: str) -> Change:
    return lambda folder: (folder / name).unlink()


def test_what_a_run_carries(runs: dict[bool, Path]) -> None:
    sources = Transcript.open(runs[False]).sources()
    assert sources == {"job.py": JOB.encode(), "helper.py": HELPER.encode()}
    records = Transcript.open(runs[False]).records()
    assert records is not None
    assert (records.count, records.forms) == (8, ["(tensor float32 [4], tensor int64 [])"])
    secret = Transcript.open(runs[True])
    assert (secret.carried, secret.sources(), secret.records()) == ((), None, None)
    assert secret.header == Transcript.open(runs[False]).header


def test_the_unchanged_job_is_accepted(runs: dict[bool, Path], tmp_path: Path) -> None:
    for run in runs.values():
        report = audited(run, make(tmp_path / run.name))
        assert report.verdict is vt.Verdict.ACCEPTED
        assert (report.cause, report.diff) == (None, ())


CRLF = edit("helper.py", lambda data: data.replace(b"\n", b"\r\n"))
MARK = edit("helper.py", lambda data: b"\xef\xbb\xbf" + data)
CARRIED_CAUSES: dict[str, tuple[Change, str]] = {
    "line ends": (CRLF, "'helper.py' differs only in line ends (yours CRLF, the run's LF)"),
    "byte order mark": (
        MARK,
        "'helper.py' differs only in a byte order mark (yours has one)",
    ),
    "both": (
        lambda folder: (CRLF(folder), MARK(folder))[0],
        "'helper.py' differs only in a byte order mark (yours has one) and line ends (yours CRLF, "
        "the run's LF)",
    ),
    "white space": (
        edit("helper.py", lambda data: data.replace(b"2\n", b"2  \n")),
        "'helper.py' differs only in white space at ends of lines",
    ),
    "a comment": (
        edit("helper.py", lambda data: data.replace(b"of learning", b"of forgetting")),
        "'helper.py' differs only in comments, blank lines or layout (bytes are compared: make them "  # noqa: E501
        "equal)",
    ),
    "blank lines": (
        edit("helper.py", lambda data: data.replace(b"\n\n\n", b"\n\n")),
        "'helper.py' differs only in comments, blank lines or layout (bytes are compared: make them "  # noqa: E501
        "equal)",
    ),
    "another rate": (
        edit("helper.py", lambda data: data.replace(b"0.1", b"0.2")),
        "'helper.py' differs in line 1: yours is `RATE = 0.2 # of learning`, the run's "
        "`RATE = 0.1 # of learning`",
    ),
    "two lines": (
        edit("helper.py", lambda data: data.replace(b"0.1", b"0.2").replace(b"/ 2", b"/ 2.0")),
        "'helper.py' differs in 2 lines, the first is line 1: yours is `RATE = 0.2 # of learning`, "
        "the run's `RATE = 0.1 # of learning`",
    ),
    "white space inside": (
        edit("helper.py", lambda data: data.replace(b"RATE = 0.1", b"RATE  = 0.1")),
        "'helper.py' differs only in comments, blank lines or layout (bytes are compared: make them "  # noqa: E501
        "equal)",
    ),
    "a line more": (
        edit("helper.py", lambda data: data + b"RATE = 0.3\n"),
        "'helper.py' differs in line 6: yours is `RATE = 0.3`, the run's nothing",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CARRIED_CAUSES)
def test_sources_that_differ(case: str, runs: dict[bool, Path], tmp_path: Path) -> None:
    change, cause = CARRIED_CAUSES[case]
    file = make(tmp_path / "auditor")
    change(file.parent)
    report = audited(runs[False], file)
    assert report.verdict is vt.Verdict.REJECTED
    assert report.verdict_line() == f"REJECTED: {cause}"
    assert str(report).splitlines()[-1] == report.verdict_line()
    assert report.reason.startswith(f"{cause}; source file 'helper.py': expected ")
    assert report.cause == cause


def test_the_diff_of_a_source(runs: dict[bool, Path], tmp_path: Path) -> None:
    file = make(tmp_path / "auditor")
    edit("helper.py", lambda data: data.replace(b"0.1", b"0.2"))(file.parent)
    report = audited(runs[False], file)
    assert report.diff == (
        "--- the run's helper.py",
        "+++ your helper.py",
        "@@ -1,3 +1,3 @@",
        "-RATE = 0.1  # of learning",
        "+RATE = 0.2  # of learning",
        " ",
        " ",
    )
    assert "\n".join(report.diff) in str(report)
    assert report.to_dict()["diff"] == [*report.diff]


@pytest.mark.parametrize("case", ["line ends", "byte order mark", "both"])
def test_a_secret_run_tells_line_ends_by_the_digest(
    case: str, runs: dict[bool, Path], tmp_path: Path
) -> None:
    change, cause = CARRIED_CAUSES[case]
    file = make(tmp_path / "auditor")
    change(file.parent)
    assert audited(runs[True], file).verdict_line() == f"REJECTED: {cause}"


def test_a_secret_run_says_that_it_is(runs: dict[bool, Path], tmp_path: Path) -> None:
    file = make(tmp_path / "auditor")
    CARRIED_CAUSES["another rate"][0](file.parent)
    assert (
        audited(runs[True], file).verdict_line()
        == "REJECTED: 'helper.py' differs (the run does not carry its sources, so it cannot be said"
        " in what)"
    )


@pytest.mark.parametrize("secret", [False, True])
def test_a_renamed_job_file(secret: bool, runs: dict[bool, Path], tmp_path: Path) -> None:
    file = make(tmp_path / "auditor")
    file.rename(file.with_name("client.py"))
    report = audited(runs[secret], file.with_name("client.py"))
    assert (
        report.verdict_line()
        == "REJECTED: your 'client.py' is the run's 'job.py': give the file that name"
    )


def test_a_source_file_too_many_or_too_few(runs: dict[bool, Path], tmp_path: Path) -> None:
    file = make(tmp_path / "auditor")
    (file.parent / "words.py").write_text("")
    edit("helper.py", lambda data: b"import words\n" + data)(file.parent)
    line = audited(runs[False], file).verdict_line()
    assert line.endswith("; your job has 'words.py' too, which the run has not")
    edit("job.py", lambda data: data.replace(b"from helper import", b"from words import"))(
        file.parent
    )
    (file.parent / "words.py").write_text(HELPER + "\n")
    line = audited(runs[False], file).verdict_line()
    assert line.endswith(
        "; your job has 'words.py' where the run's has 'helper.py' (if they are one file, give it "
        "that name), and they differ only in comments, blank lines or layout (bytes are compared: "
        "make them equal)"
    )
    edit("job.py", lambda data: b"import os.path, first, second\n" + data)(file.parent)
    for name in ("first.py", "second.py"):
        (file.parent / name).write_text("")
    line = audited(runs[True], file).verdict_line()
    assert line.endswith(
        "; your job has 'first.py' too, which the run has not; your job has 'second.py' too, which "
        "the run has not; and 2 more"
    )


def test_a_renamed_and_edited_job_file(runs: dict[bool, Path], tmp_path: Path) -> None:
    file = make(tmp_path / "auditor")
    edit("job.py", lambda data: data.replace(b"lr=RATE", b"lr=1.0"))(file.parent)
    file = file.rename(file.with_name("client.py"))
    start = (
        "your job has 'client.py' where the run's has 'job.py' (if they are one file, give it that "
        "name), and they differ "
    )
    report = audited(runs[False], file)
    assert report.cause is not None
    assert report.cause.startswith(f"{start}in line 40: yours is `optimizer=")
    assert report.diff[:2] == ("--- the run's job.py", "+++ your client.py")
    assert (
        audited(runs[True], file).cause == "your job has 'client.py' too, which the run has not; "
        "the run's job has 'job.py' too, which yours has not"
    )
    file.write_bytes(JOB.replace("\n", "\r\n").encode())  # told by the digest alone
    cause = f"{start}only in line ends (yours CRLF, the run's LF)"
    assert audited(runs[True], file).cause == cause


# -- an explanation changes no verdict


def test_only_what_differs_is_read(
    runs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However large the other files are."""
    from veritrain.replay import header

    file = make(tmp_path / "auditor")
    change, cause = CARRIED_CAUSES["another rate"]
    change(file.parent)
    monkeypatch.setattr(header, "_MOST_SOURCES", len(HELPER))
    assert audited(runs[False], file).cause == cause
    found = compare(Transcript.open(runs[False]), vt.load_job(file)).sources
    assert found is not None
    assert found.words == cause
    edit("job.py", lambda data: data + b"# too long\n")(file.parent)
    report = audited(runs[False], file)
    assert report.verdict is vt.Verdict.REJECTED
    assert (
        report.cause
        == f"{cause}; 'job.py' differs (your file is too large to be compared, or is no longer"
        " what "
        "was read)"
    )


def test_a_source_that_was_deleted_or_edited_since(runs: dict[bool, Path], tmp_path: Path) -> None:
    file = make(tmp_path / "auditor")
    change, cause = CARRIED_CAUSES["another rate"]
    change(file.parent)
    job = vt.load_job(file)
    shutil.rmtree(file.parent)
    report = vt.audit(runs[False], job)
    assert (report.verdict, report.cause) == (vt.Verdict.REJECTED, cause)


def test_a_data_file_that_was_deleted_or_edited_since(tmp_path: Path) -> None:
    file = make(tmp_path / "job")
    words = file.with_name("words.txt")
    edit("job.py", lambda data: data.replace(b"seed=1", b"seed=1, sources=['words.txt']"))(
        file.parent
    )
    words.write_text("one\n")
    vt.train(vt.load_job(file), tmp_path / "run", signer=KEY)
    words.write_text("two\n")
    job = vt.load_job(file)
    for change in (lambda: words.write_text("three\n"), words.unlink):
        change()
        report = vt.audit(tmp_path / "run", job)
        assert (report.verdict, report.cause) == (
            vt.Verdict.REJECTED,
            (
                "'words.txt' differs (your file is too large to be compared, or is no longer what"
                " was read)"
            ),
        )


def test_what_a_run_carries_that_cannot_be_read_again(
    runs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = make(tmp_path / "auditor")
    CARRIED_CAUSES["another rate"][0](file.parent)
    read, calls = Transcript.sources, list[int]()

    def once(self: Transcript) -> dict[str, bytes] | None:
        calls.append(1)
        if len(calls) > 1:
            raise vt.TranscriptError("sources", "gone")
        return read(self)

    monkeypatch.setattr(Transcript, "sources", once)
    report = audited(runs[False], file)
    assert report.verdict is vt.Verdict.REJECTED
    assert (
        report.cause
        == "the source files differ; in what, cannot be said: what the run carries cannot be read "
        "(sources: gone)"
    )


class Failing:
    """A data set whose records can be read once."""

    def __init__(self) -> None:
        self.reads = 0

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.reads += 1
        if self.reads > 8:
            raise OSError("the disk is gone")
        return torch.zeros(4), torch.tensor(0)


def test_a_record_that_cannot_be_read_again(runs: dict[bool, Path], tmp_path: Path) -> None:
    job = replace(vt.load_job(make(tmp_path / "auditor")), dataset=Failing())
    report = vt.audit(runs[False], job)
    assert report.verdict is vt.Verdict.REJECTED
    assert report.cause is not None
    assert report.cause.startswith("which records differ cannot be said: ")
    assert "the disk is gone" in report.cause


def test_another_setting(runs: dict[bool, Path], tmp_path: Path) -> None:
    job = vt.load_job(make(tmp_path / "auditor"))
    report = vt.audit(runs[False], vt.Job(**{**vars(job), "steps": 3, "seed": 5}))
    assert (
        report.verdict_line() == "REJECTED: setting 'seed' is 1 in the run and 5 in your job; "
        "setting 'steps' is 2 in the run and 3 in your job"
    )


def test_a_setting_of_another_type() -> None:
    assert (
        settings_cause({"steps": 300}, {"steps": 300.0})
        == "setting 'steps' is 300.0 in the run and 300 in your job (another type or sign)"
    )


SEED = (1).to_bytes(32, "big")


@pytest.mark.parametrize(
    ("own", "claimed", "told"),
    [
        (SEED, 1, "is 1 in the run and 1 in your job (another type or sign)"),
        (SEED, SEED + b"x", "is 33 bytes in the run and 1 in your job"),
        (SEED, SEED[1:], "is 31 bytes in the run and 1 in your job"),
        (b"1", b"2", "is 1 bytes in the run and 1 bytes in your job (other ones)"),
        ([1], [2], "is list of 1 in the run and list of 1 in your job (other ones)"),
        (
            "a" * 99,
            "a" * 98,
            f"is '{'a' * 79}... in the run and '{'a' * 79}... in your job (other ones)",
        ),
    ],
    ids=["a number", "longer", "shorter", "bytes", "a list", "a long text"],
)
def test_settings_that_look_the_same(own: Value, claimed: Value, told: str) -> None:
    assert settings_cause({"seed": own}, {"seed": claimed}) == f"setting 'seed' {told}"


def test_bytes_that_begin_alike_are_told_apart() -> None:
    texts = named_differences({"seed": SEED}, {"seed": SEED + b"x"})
    assert texts == [f"'seed': expected {SEED.hex()}, got {SEED.hex()}... of 33 bytes"]


@pytest.mark.parametrize(
    ("order", "start"),
    [
        (
            "listed otherwise",
            (
                "they hold the same records in another order: your record 0 is the run's record 7;"
                " sort what os.listdir, glob or a set gives"
            ),
        ),
        (
            "another dtype",
            (
                "8 of 8 records differ, the first is record 0: yours is (tensor float64 [4], tensor"
                " int64 []), the run's (tensor float32 [4], tensor int64 [])"
            ),
        ),
    ],
)
def test_another_environment_of_the_data(
    order: str, start: str, runs: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDER", order)
    report = audited(runs[False], make(tmp_path / "auditor"))
    assert report.verdict_line().startswith(f"REJECTED: {start}")
    assert report.reason.startswith("data set: expected ")


DATA_CAUSES: dict[str, tuple[Change, str]] = {
    "a value": (
        edit("corpus/3.txt", lambda data: data + b"?"),
        "record 3 differs: of the same form, (tensor float32 [4], tensor int64 []), with other values",  # noqa: E501
    ),
    "line ends": (
        in_all([f"corpus/{i}.txt" for i in range(2, 8)], lambda data: data.replace(b"\n", b"\r\n")),
        "6 of 8 records differ, the first is record 2: of the same form, (tensor float32 [4], tensor "  # noqa: E501
        "int64 []), with other values",
    ),
    "one more": (
        lambda folder: (folder / "corpus" / "9.txt").write_text("9999999999999999999") and None,
        "your data set has the run's records and 1 more; the first is your record 8",
    ),
    "one less": (
        remove("corpus/5.txt"),
        "your data set lacks 1 of the run's records; the first is the run's record 5",
    ),
    "another one, and another order": (
        lambda folder: (remove("corpus/1.txt")(folder),
                        (folder / "corpus" / "9.txt").write_text("9999999999999999999"))[0],
        "1 of your 8 records are not among the run's, the first is record 7, (tensor float32 "
        "[4], tensor int64 []); the others are in another order: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA_CAUSES)
def test_records_that_differ(case: str, runs: dict[bool, Path], tmp_path: Path) -> None:
    change, cause = DATA_CAUSES[case]
    file = make(tmp_path / "auditor")
    change(file.parent)
    line = audited(runs[False], file).verdict_line()
    assert line.startswith(f"REJECTED: {cause}"), line
    line = audited(runs[True], file).verdict_line()
    assert "the run does not carry the digests of its records" in line


def test_the_order_of_a_set(tmp_path: Path) -> None:
    """Trained in one process and audited in another, with other hash seeds."""
    make(tmp_path / "job")
    code = (
        "import sys, veritrain as vt; job = vt.load_job(sys.argv[1]); "
        "sys.argv[2] == 'train' and vt.train(job, sys.argv[3], signer=vt.Signer.generate()); "
        "print(vt.audit(sys.argv[3], job))"
    )
    words = [sys.executable, "-c", code, tmp_path / "job/job.py"]
    for seed, what in (("1", "train"), ("2", "audit")):
        environment = {**os.environ, "ORDER": "a set", "PYTHONHASHSEED": seed}
        done = subprocess.run(
            [*words, what, tmp_path / "run"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        line = done.stdout.splitlines()[-1]
        assert line.startswith(
            "ACCEPTED: 2 of 2 steps" if what == "train" else
            "REJECTED: they hold the same records in another order: "
        ), line  # fmt: skip
    assert "PYTHONHASHSEED" in line


def test_other_versions_are_in_the_last_line(runs: dict[bool, Path], tmp_path: Path) -> None:
    versions = {**Transcript.open(runs[True]).header.environment, "torch": "1.0", "other": "3"}
    rewrite(runs[True], tmp_path / "run", environment=versions)
    file = make(tmp_path / "auditor")
    edit("corpus/3.txt", lambda data: data + b"?")(file.parent)
    report = audited(tmp_path / "run", file)
    assert report.verdict is vt.Verdict.INCONCLUSIVE
    line = report.verdict_line()
    here = Transcript.open(runs[True]).header.environment["torch"]
    assert (
        line
        == f"INCONCLUSIVE: the run was recorded with torch 1.0 (here {here}), other 3 (not used"
        " here): audit it with these"
    )


@pytest.mark.parametrize("name", ["sources", "records"])
def test_what_is_carried_and_false_is_rejected(
    name: str, runs: dict[bool, Path], tmp_path: Path
) -> None:
    """A byte of every hundred, in each part of the file."""
    job = vt.load_job(make(tmp_path / "auditor"))
    shutil.copytree(runs[False], tmp_path / "run")
    honest = (tmp_path / "run" / name).read_bytes()
    verdicts: set[object] = set()
    for place in range(3, len(honest), 97):
        changed = bytearray(honest)
        changed[place] ^= 1 << place % 8
        (tmp_path / "run" / name).write_bytes(changed)
        try:
            report = vt.audit(tmp_path / "run", job, steps=(1, 1))
        except vt.TranscriptError:
            verdicts.add("malformed")
            continue
        assert report.verdict is vt.Verdict.REJECTED
        assert report.checks[2].outcome.value == "failed"
        assert name in report.reason
        verdicts.add("rejected")
    assert "rejected" in verdicts


# Texts and records of anybody.


@given(st.binary(max_size=200), st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_any_two_files_can_be_compared(own: bytes, claimed: bytes) -> None:
    if own != claimed:
        found = difference("job.py", own, claimed)
        assert found.words
        assert all(line.isprintable() for line in (found.words, *found.diff))


@pytest.mark.parametrize(
    ("own", "claimed"),
    [
        (b"(" * 200_000, b"[" * 200_000),
        (b"x = " + b"-" * 200_000 + b"1", b"x = " + b"-" * 200_001 + b"1"),
        (b"\n".join([b"a", b"b"] * 100_000), b"\n".join([b"b", b"a"] * 100_000)),
        (b"\x1b[2J" * 1000, b"\x1b[3J" * 1000),
        (b"'" * 100_001, b'"' * 100_001),
        (b"a" * (2 << 20), b"b" * (2 << 20)),
        (b"\xff\xfe", b"\xff\xfd"),
        (b" \n" * 5_000 + b"x", b"\t\n" * 5_000 + b"x"),
    ],
)
def test_hostile_files_are_compared_within_bounds(own: bytes, claimed: bytes) -> None:
    found = difference("job.py", own, claimed)
    assert found.words.isprintable()
    assert len(found.words) < 500
    assert len(found.diff) <= 41
    assert all(len(line) <= 200 and line.isprintable() for line in found.diff)


@given(st.text(st.sampled_from("ab\r\n"), max_size=12), st.booleans(), st.booleans())
def test_line_ends_and_marks_are_found_by_the_digest(text: str, marked: bool, crlf: bool) -> None:
    own = text.replace("\r", "").encode()
    claimed = own.replace(b"\n", b"\r\n") if crlf else own
    claimed = b"\xef\xbb\xbf" + claimed if marked else claimed
    if own != claimed:
        assert claimed in [made for _, made in variants(own)]
        digests = [{"x": digest("source", data)} for data in (own, claimed)]
        found = sources_cause(*digests, {"x": own}, None)
        assert found.words.startswith("'x' differs only in ")


RECORD = [digest("record", b"%d" % index) for index in range(6)]
places = st.lists(st.integers(0, 5), min_size=1, max_size=8)


@given(places, places)
@settings(deadline=None)
def test_any_two_data_sets_can_be_compared(own: list[int], claimed: list[int]) -> None:
    if own == claimed:
        return
    records = Records(
        run=bytes(32),
        digests=b"".join(RECORD[index] for index in claimed),
        forms=["int"],
        form_numbers=bytes(2 * len(claimed)),
        signature=bytes(64),
    )
    cause = dataset_cause([RECORD[index] for index in own], records, lambda index: "float")
    if sorted(own) == sorted(claimed):
        assert "the same records in another order" in cause
    elif len(own) == len(claimed):
        assert "the run's int" in cause or "no record of the run has" in cause
    assert cause


def test_random_records_are_told(tmp_path: Path) -> None:
    out = tmp_path / "run"
    vt.train(jobs.make(steps=1), out, signer=KEY)
    records = Transcript.open(out).records()
    assert records is not None
    assert records.forms == [
        "draws random numbers: ({'x': tensor float32 [6], 'weight': float}, int)"
    ]
