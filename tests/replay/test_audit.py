"""The audit accepts what was trained as the job says, and nothing else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import veritrain as vt
from tests import jobs
from veritrain.adversaries import trainers
from veritrain.encoding import Value
from veritrain.job.sources import require_job
from veritrain.replay import auditor as replay
from veritrain.replay.report import Outcome
from veritrain.transcript import Header, Transcript, TranscriptWriter, state_entries, state_root

KEY = vt.Signer.generate()
NAMES = [
    "format", "signatures", "chain", "job", "data set", "initial state", "checkpoints", "replay",
    "completeness",
]  # fmt: skip

JOB_FILE = f"""
import os, signal, sys
sys.path.append({str(Path(__file__).parents[2])!r})
from tests import jobs

RATE = 0.01

def job():
    return jobs.make(steps=12, sources=[{jobs.__file__!r}])
"""


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("honest") / "run"
    vt.train(jobs.make(), out, signer=KEY)
    return out


@pytest.fixture(scope="module")
def job_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job file that names a module outside of its folder."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "job.py").write_text(JOB_FILE)
    return folder / "job.py"


def record(job: vt.Job, out: Path) -> Path:
    vt.train(job, out, signer=KEY)
    return out


def outcomes(report: vt.AuditReport) -> dict[str, str]:
    return {check.name: check.outcome.value for check in report.checks}


def failed(report: vt.AuditReport) -> str:
    """Name of the check that failed; all before passed, all after did not run."""
    assert report.verdict is vt.Verdict.REJECTED
    name = next(check.name for check in report.checks if check.outcome is Outcome.FAILED)
    place = NAMES.index(name)
    expected = ["passed"] * place + ["failed"] + ["not run"] * (len(NAMES) - place - 1)
    assert list(outcomes(report).values()) == expected
    return name


def test_accepts_an_honest_run(honest: Path) -> None:
    seen: list[int] = []
    report = vt.audit(honest, jobs.make(), on_step=seen.append)
    assert report.verdict is vt.Verdict.ACCEPTED
    assert outcomes(report) == dict.fromkeys(NAMES, "passed")
    assert [check.number for check in report.checks] == list(range(1, 10))
    assert (report.steps_replayed, report.total_steps, seen) == (10, 10, list(range(1, 11)))
    assert report.root == Transcript.open(honest).heads[-1].head.root
    assert report.key == KEY.fingerprint
    assert report.findings == ()
    report.require_accepted()


def test_the_module_comment_lists_the_checks() -> None:
    assert replay.__doc__ is not None
    for number, name in enumerate(NAMES, 1):
        assert f"  {number}. {name}" in replay.__doc__


@pytest.mark.parametrize(
    ("steps", "replayed"), [((1, 10), 10), ((1, 1), 1), ((6, 7), 3), ((5, 8), 4), ((10, 10), 2)]
)
def test_a_range_starts_at_the_checkpoint_before(
    honest: Path, steps: tuple[int, int], replayed: int
) -> None:
    report = vt.audit(honest, jobs.make(), steps=steps)
    assert report.verdict is vt.Verdict.ACCEPTED
    assert report.steps_replayed == replayed


def test_a_sample_is_drawn_anew_each_time(honest: Path) -> None:
    reports = [vt.audit(honest, jobs.make(), sample=1) for _ in range(2)]
    assert all(report.verdict is vt.Verdict.ACCEPTED for report in reports)
    assert all(report.steps_replayed in (4, 2) for report in reports)
    assert reports[0].sample_nonce != reports[1].sample_nonce
    assert vt.audit(honest, jobs.make(), sample=99).steps_replayed == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample": 0}, "sample: expected 1 or more"),
        ({"sample": -1}, "sample: expected 1 or more"),
        ({"steps": (0, 3)}, "steps: expected 1 <= first"),
        ({"steps": (5, 4)}, "steps: expected 1 <= first"),
        ({"steps": (5, 11)}, "steps: the run has 10 steps"),
        ({"steps": (1, 2), "sample": 1}, "give one of them"),
        ({"processes": 0}, "processes: expected 1 or more"),
        ({"processes": 2}, r"processes: expected a job from load_job\(\)"),
        ({"trusted_key": b"short"}, "trusted_key: expected 32 bytes, got 5"),
        ({"trusted_key": "x" * 32}, "trusted_key: expected a fingerprint of 32 hexadecimal digits"),
        ({"trusted_key": "a" * 64}, "hexadecimal digits, got 64 characters"),
    ],
)
def test_refuses_bad_options(honest: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(vt.UsageError, match=message):
        vt.audit(honest, jobs.make(), **options)


def test_trusted_key(honest: Path) -> None:
    for key in (KEY.public_key, KEY.fingerprint, KEY.fingerprint.upper()):
        report = vt.audit(honest, jobs.make(), trusted_key=key)
        assert report.verdict is vt.Verdict.ACCEPTED
    other = vt.Signer.generate()
    for key in (other.public_key, other.fingerprint):
        report = vt.audit(honest, jobs.make(), trusted_key=key)
        assert failed(report) == "signatures"
        assert f"expected {other.fingerprint}, got {KEY.fingerprint}" in report.reason


class Counting(jobs.Net):
    """Carries a number from step to step outside of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [torch.zeros(())]  # a plain attribute would be refused at the first step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls[0] = self.calls[0] + 1
        return super().forward(x) * (1 + self.calls[0] / 64)


@pytest.mark.parametrize("steps", [None, (5, 6), (1, 10)])
def test_hidden_state_is_rejected_however_the_audit_is_cut(
    steps: tuple[int, int] | None, tmp_path: Path
) -> None:
    job = jobs.make(model=Counting)
    with pytest.raises(vt.JobError, match="differs in"):
        record(job, tmp_path / "refused")
    vt.train(job, tmp_path / "run", signer=KEY, rehearse=False)
    report = vt.audit(tmp_path / "run", job, steps=steps)
    assert failed(report) == "replay"
    assert report.findings[0].step == 5


def test_a_run_in_memory_needs_one_process(job_file: Path) -> None:
    job = vt.load_job(job_file)
    vt.train(job, "memory://audited", signer=KEY)
    with pytest.raises(vt.UsageError, match="cannot read memory://audited"):
        vt.audit("memory://audited", job, processes=2)
    assert vt.audit("memory://audited", job).verdict is vt.Verdict.ACCEPTED


def test_processes_do_not_start_from_standard_input(job_file: Path, honest: Path) -> None:
    script = (
        f"import veritrain as vt; vt.audit({str(honest)!r}, vt.load_job({str(job_file)!r}),"
        " processes=2)"
    )
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, text=True)
    assert "UsageError: processes: other processes cannot start from a script" in done.stderr


@pytest.mark.parametrize("error", ["sys.exit(0)", "raise KeyError('gone')"])
def test_an_error_of_the_job_in_a_replay_process_is_inconclusive(
    error: str, job_file: Path, tmp_path: Path
) -> None:
    """The job's data set works in this process and fails in others."""
    text = job_file.read_text().replace(
        "    return jobs.make(steps=12, ",
        "    import sys\n"
        "    class Data(jobs.Points):\n"
        "        def __len__(self):\n"
        f"            if os.environ.get('FAIL'): {error}\n"
        "            return 40\n"
        "    return jobs.make(steps=12, dataset=Data, ",
    )
    (tmp_path / "job.py").write_text(text)
    job = vt.load_job(tmp_path / "job.py")
    record(job, tmp_path / "run")
    batches = replay.Batches(job)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAIL", "1")
        patch.setattr(replay, "Batches", lambda job: batches)
        report = vt.audit(tmp_path / "run", job, processes=2)
    assert report.verdict is vt.Verdict.INCONCLUSIVE
    assert "dataset: len raised" in report.reason


CHEATS: dict[str, tuple[Callable[[vt.Job], vt.Job], str, int, str]] = {
    "weight altered": (lambda j: trainers.alter_weight(j, 7), "replay", 7, "state"),
    "weight altered at a checkpoint": (lambda j: trainers.alter_weight(j, 8), "replay", 8, "state"),
    "learning rate": (lambda j: trainers.wrong_rate(j, 5, 1.0000001), "replay", 5, "state"),
    "update skipped": (lambda j: trainers.skip_update(j, 3), "replay", 3, "state"),
    "start chosen": (trainers.wrong_start, "initial state", 0, "state"),
    "loss flattered": (lambda j: trainers.flatter_loss(j, 0.125), "replay", 1, "loss"),
    "other optimiser": (
        lambda j: replace(j, optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=0.02)),
        "initial state", 0, "state",
    ),
}  # fmt: skip


@pytest.mark.parametrize("cheat", CHEATS)
def test_rejects_cheats_at_their_step(cheat: str, job_file: Path, tmp_path: Path) -> None:
    job = vt.load_job(job_file)
    dishonest, check, step, what = CHEATS[cheat]
    record(dishonest(job), tmp_path / "run")
    report = vt.audit(tmp_path / "run", job)
    assert failed(report) == check
    assert (report.findings[0].step, report.findings[0].what) == (step, what)
    assert report.findings[0].expected != report.findings[0].got
    assert report.reason.startswith(f"step {step}: {what}: expected ")
    if check == "replay":
        assert report.steps_replayed == step - 1


def test_names_the_first_tensor_at_a_checkpoint(job_file: Path, tmp_path: Path) -> None:
    job = vt.load_job(job_file)
    record(trainers.alter_weight(job, 8), tmp_path / "run")
    report = vt.audit(tmp_path / "run", job)
    assert report.findings[1].what == "tensor 'model/first.weight'"


def test_rejects_a_poisoned_sample_where_it_is_used(job_file: Path, tmp_path: Path) -> None:
    from veritrain.job.data import Batches

    job = vt.load_job(job_file)
    batches = Batches(job)
    index = batches.indices(4)[2]
    poisoned = trainers.poison_sample(job, index, lambda r: (r[0], (r[1] + 1) % 3))
    vt.train(poisoned, tmp_path / "run", signer=KEY, rehearse=False)
    report = vt.audit(tmp_path / "run", job)
    assert failed(report) == "replay"
    used = next(step for step in range(1, 13) if index in batches.indices(step))
    assert (report.findings[0].step, report.findings[0].what) == (used, "batch")


def test_a_cheat_in_a_sampled_interval_is_found(job_file: Path, tmp_path: Path) -> None:
    job = vt.load_job(job_file)
    record(trainers.alter_weight(job, 6), tmp_path / "run")
    verdicts = {
        vt.audit(tmp_path / "run", job, steps=steps).verdict
        for steps in ((5, 8), (6, 6), (1, 12), (7, 7))
    }
    assert verdicts == {vt.Verdict.REJECTED}
    assert vt.audit(tmp_path / "run", job, sample=3).verdict is vt.Verdict.REJECTED
    # What was not asked for is not looked at, and the report says so.
    report = vt.audit(tmp_path / "run", job, steps=(9, 12))
    assert (report.verdict, report.steps_replayed) == (vt.Verdict.ACCEPTED, 4)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"steps": 11}, "setting 'steps': expected 11, got 10"),
        ({"seed": 12}, "setting 'seed': expected 0{62}0c, got 0{62}0b"),
        ({"clip_norm": 2.0}, "setting 'clip_norm': expected 2.0, got 1.0"),
        ({"batch_size": 4}, "setting 'batch_size': expected 4, got 8"),
        (
            {"loss": lambda m, b: jobs.loss(m, b)},
            "source file 'replay/test_audit.py': expected .*, got nothing",
        ),
        ({"numerics": "native"}, "setting 'numerics': expected 'native', got 'exact'"),
    ],
)
def test_rejects_another_job(honest: Path, change: dict[str, Any], text: str) -> None:
    report = vt.audit(honest, jobs.make(**change))
    assert failed(report) == "job"
    assert re.search(text, report.reason), report.reason


def test_rejects_a_changed_line_of_the_job_file(tmp_path: Path, job_file: Path) -> None:
    text = job_file.read_text()
    (tmp_path / "job.py").write_text(text)
    record(vt.load_job(tmp_path / "job.py"), tmp_path / "run")
    assert (
        vt.audit(tmp_path / "run", vt.load_job(tmp_path / "job.py")).verdict is vt.Verdict.ACCEPTED
    )
    (tmp_path / "job.py").write_text(text.replace("RATE = 0.01", "RATE = 0.02"))
    report = vt.audit(tmp_path / "run", vt.load_job(tmp_path / "job.py"))
    assert failed(report) == "job"
    assert "source file 'job.py': expected " in report.reason


@pytest.mark.parametrize(
    ("dataset", "what"),
    [(jobs.Points(41), "number of records"), ([({"x": 1}, 2)] * 40, "data set")],
)
def test_rejects_another_data_set(dataset: Any, what: str, tmp_path: Path, job_file: Path) -> None:
    job = vt.load_job(job_file)
    record(job, tmp_path / "run")
    report = vt.audit(tmp_path / "run", replace(job, dataset=dataset))
    assert failed(report) == "data set"
    assert report.findings[0].what == what


def test_an_unfinished_run_is_inconclusive(tmp_path: Path) -> None:
    with vt.Recorder(jobs.make(), tmp_path / "run", signer=KEY) as run:
        steps = iter(run)
        for _ in range(5):
            next(steps).train()
    report = vt.audit(tmp_path / "run", jobs.make())
    assert report.verdict is vt.Verdict.INCONCLUSIVE
    assert "unfinished: expected 10 steps, got 5" in report.reason
    assert report.steps_replayed == 5
    with pytest.raises(vt.InconclusiveError):
        report.require_accepted()


def test_a_run_without_steps_is_inconclusive(tmp_path: Path) -> None:
    with vt.Recorder(jobs.make(), tmp_path / "run", signer=KEY):
        pass
    report = vt.audit(tmp_path / "run", jobs.make())
    assert report.verdict is vt.Verdict.INCONCLUSIVE
    assert report.steps_replayed == 0


def test_a_run_without_a_head_is_inconclusive(honest: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(honest / "header", tmp_path / "run/header")
    assert vt.audit(tmp_path / "run", jobs.make()).verdict is vt.Verdict.INCONCLUSIVE


def test_a_finished_run_holds_nothing_else(honest: Path, tmp_path: Path) -> None:
    shutil.copytree(honest, tmp_path / "run")
    (tmp_path / "run/leaves/.tmp-1").write_bytes(b"x")
    report = vt.audit(tmp_path / "run", jobs.make())
    assert failed(report) == "completeness"
    assert "leaves/.tmp-1" in report.reason


def rewrite(source: Path, target: Path, **header: Any) -> None:
    """The honest run with another header, signed again: what a lying trainer could write."""
    run = Transcript.open(source)
    changed = replace(run.header, **header)
    writer = TranscriptWriter.create(target, changed, KEY)
    for leaf in run.leaves:
        writer.append(state=leaf.state, batch=leaf.batch, loss=leaf.loss, rounding=leaf.rounding)
        if leaf.step in run.checkpoint_steps:
            state = run.load_state(leaf.step)
            writer.commit(state, state_entries(state))


def with_version(header: Header, **versions: str) -> dict[str, str]:
    return {**header.environment, **versions}


def test_another_numerics_version_is_inconclusive(honest: Path, tmp_path: Path) -> None:
    rewrite(honest, tmp_path / "run", numerics_version=3)
    report = vt.audit(tmp_path / "run", jobs.make())
    assert report.verdict is vt.Verdict.INCONCLUSIVE
    assert "uses version 3 of exact numerics" in report.reason


def test_a_false_numerics_name_is_rejected(honest: Path, tmp_path: Path) -> None:
    rewrite(honest, tmp_path / "run", numerics="native")
    assert failed(vt.audit(tmp_path / "run", jobs.make())) == "job"


def test_another_environment_with_equal_bits_is_accepted(honest: Path, tmp_path: Path) -> None:
    environment = with_version(Transcript.open(honest).header, torch="1.0")
    rewrite(honest, tmp_path / "run", environment=environment)
    assert vt.audit(tmp_path / "run", jobs.make()).verdict is vt.Verdict.ACCEPTED


def test_a_difference_in_another_environment_is_inconclusive(
    job_file: Path, tmp_path: Path
) -> None:
    job = vt.load_job(job_file)
    record(trainers.alter_weight(job, 6), tmp_path / "lie")
    environment = with_version(Transcript.open(tmp_path / "lie").header, torch="1.0", other="3")
    rewrite(tmp_path / "lie", tmp_path / "run", environment=environment)
    report = vt.audit(tmp_path / "run", job)
    assert report.verdict is vt.Verdict.INCONCLUSIVE
    assert "'torch': expected '" in report.reason
    assert "'other': expected nothing, got '3'" in report.reason
    assert report.findings[0].step == 6


@pytest.mark.parametrize(
    "header",
    [
        {"job": {}},
        {"job": {"config": 1, "sources": [1]}},
        {"job": {"config": {f"\x1b{i}": i for i in range(5000)}, "sources": {}}},
    ],
)
def test_a_hostile_job_in_the_header_is_rejected(
    honest: Path, tmp_path: Path, header: dict[str, Any]
) -> None:
    rewrite(honest, tmp_path / "run", **header)
    report = vt.audit(tmp_path / "run", jobs.make())
    assert failed(report) == "job"
    assert report.reason.isprintable()
    assert len(report.reason) < 2000


@pytest.mark.parametrize(
    ("setting", "value", "text"),
    [
        ("steps", 10.0, "setting 'steps': expected 10, got 10.0"),
        ("accumulate", True, "setting 'accumulate': expected 1, got True"),
        ("clip_norm", 1, "setting 'clip_norm': expected 1.0, got 1"),
    ],
)
def test_a_setting_of_another_type_is_another_setting(
    tmp_path: Path, setting: str, value: object, text: str
) -> None:
    job = jobs.make(accumulate=1)
    record(job, tmp_path / "honest")
    claimed = Transcript.open(tmp_path / "honest").header.job
    config = {**cast("dict[str, Value]", claimed["config"]), setting: value}
    rewrite(tmp_path / "honest", tmp_path / "run", job={**claimed, "config": config})
    report = vt.audit(tmp_path / "run", job)
    assert failed(report) == "job"
    assert text in report.reason
    with pytest.raises(vt.UsageError, match="another job"):
        require_job(job, Transcript.open(tmp_path / "run").header.job, "the run")


def test_native_numerics_accepts_equal_bits(tmp_path: Path, job_file: Path) -> None:
    job = replace(vt.load_job(job_file), numerics="native")
    record(job, tmp_path / "run")
    assert vt.audit(tmp_path / "run", job).verdict is vt.Verdict.ACCEPTED


def test_native_numerics_measures_a_difference(tmp_path: Path, job_file: Path) -> None:
    job = replace(vt.load_job(job_file), numerics="native")
    record(trainers.alter_weight(job, 6), tmp_path / "run")
    report = vt.audit(tmp_path / "run", job)
    assert report.verdict is vt.Verdict.INCONCLUSIVE
    assert "largest relative gap" in report.reason
    assert "at step 8" in report.reason


def test_a_step_that_cannot_be_recomputed_is_inconclusive(tmp_path: Path, job_file: Path) -> None:
    job = vt.load_job(job_file)
    record(job, tmp_path / "run")
    calls = 0

    def failing(model, batch):
        nonlocal calls
        calls += 1
        if calls > 5:
            raise MemoryError("too big")
        return jobs.loss(model, batch)

    report = vt.audit(tmp_path / "run", replace(job, loss=failing))
    assert report.verdict is vt.Verdict.INCONCLUSIVE
    assert "step 3: loss raised MemoryError: too big" in report.reason


def test_a_claim_beyond_a_failing_step_is_rejected(tmp_path: Path, job_file: Path) -> None:
    """The trainer hides that the loss became NaN; an honest recorder would have stopped."""
    job = vt.load_job(job_file)
    record(job, tmp_path / "run")
    nan = replace(job, loss=lambda m, b: jobs.loss(m, b) * float("nan"))
    report = vt.audit(tmp_path / "run", nan)
    assert failed(report) == "replay"
    assert "step 1: outcome: expected an error (step 1: the loss is nan)" in report.reason


def test_a_checkpoint_that_the_job_cannot_hold_is_rejected(honest: Path, tmp_path: Path) -> None:
    """Signed properly, but a state of another model: refused by the tensor's name."""
    run = Transcript.open(honest)
    writer = TranscriptWriter.create(tmp_path / "run", run.header, KEY)
    for leaf in run.leaves:
        digest = leaf.state
        state = run.load_state(leaf.step) if leaf.step in run.checkpoint_steps else None
        if state is not None and leaf.step == 4:
            state["model/first.weight"] = torch.zeros(2)
            digest = state_root(state_entries(state))
        writer.append(state=digest, batch=leaf.batch, loss=leaf.loss)
        if state is not None:
            writer.commit(state, state_entries(state))
    for steps in ((5, 6), None):
        report = vt.audit(tmp_path / "run", jobs.make(), steps=steps)
        assert failed(report) == "checkpoints"
        assert "step 4: the stored state is not one that the job can have" in report.reason
        assert "model/first.weight: expected float32 of shape (8, 6)" in report.reason


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_one_flipped_bit_is_never_accepted(
    data: st.DataObject, honest: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("flip") / "run"
    shutil.copytree(honest, folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, 8 * len(content) - 1))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    try:
        verdict = vt.audit(folder, jobs.make(), steps=(9, 10)).verdict
    except vt.TranscriptError:
        return
    assert verdict is vt.Verdict.REJECTED


def test_processes_give_the_same_report(job_file: Path, tmp_path: Path) -> None:
    job = vt.load_job(job_file)
    record(job, tmp_path / "run")
    seen: list[int] = []
    report = vt.audit(tmp_path / "run", job, processes=2, on_step=seen.append)
    assert report.verdict is vt.Verdict.ACCEPTED
    assert (report.steps_replayed, seen) == (12, list(range(1, 13)))


def test_processes_find_the_first_lie(job_file: Path, tmp_path: Path) -> None:
    job = vt.load_job(job_file)
    record(trainers.alter_weight(trainers.alter_weight(job, 6), 10), tmp_path / "run")
    report = vt.audit(tmp_path / "run", job, processes=2)
    assert failed(report) == "replay"
    assert report.findings[0].step == 6


def test_a_replay_process_that_dies_is_inconclusive(job_file: Path, tmp_path: Path) -> None:
    text = job_file.read_text()
    # Only a replay process imports the job with this variable set, and it dies in a step.
    deadly = text.replace(
        "    return jobs.make(steps=12, ",
        "    def loss(model, batch):\n"
        "        if os.environ.get('DIE'): os.kill(os.getpid(), signal.SIGKILL)\n"
        "        return jobs.loss(model, batch)\n"
        "    return jobs.make(steps=12, loss=loss, ",
    )
    (tmp_path / "job.py").write_text(deadly)
    job = vt.load_job(tmp_path / "job.py")
    record(job, tmp_path / "run")
    os.environ["DIE"] = "1"
    try:
        report = vt.audit(tmp_path / "run", job, processes=2)
    finally:
        del os.environ["DIE"]
    assert report.verdict is vt.Verdict.INCONCLUSIVE
    assert "ended unexpectedly" in report.reason


def test_the_verifier_loads_nothing_of_training() -> None:
    unwanted = ("veritrain.training", "veritrain.adversaries", "rich", "click", "sklearn")
    code = (
        "import sys, veritrain; veritrain.audit\n"
        f"sys.exit(str([name for name in sys.modules if name.startswith({unwanted})] or 0) != '0')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
