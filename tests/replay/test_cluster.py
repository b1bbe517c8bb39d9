"""Audits whose intervals a Ray cluster recomputes; one of this machine alone stands for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

import veritrain as vt
from tests.training.test_distributed import JOB
from veritrain.numerics.logged.tally import Tally
from veritrain.replay import cluster
from veritrain.replay.report import Finding
from veritrain.replay.segments import SegmentResult

HAS_RAY = importlib.util.find_spec("ray") is not None


@pytest.fixture
def job_file(tmp_path: Path) -> Path:
    file = tmp_path / "job.py"
    text = JOB.replace("{steps}", "8").replace("{shards}", "2").replace("{accumulate}", "1")
    file.write_text(text)
    return file


@pytest.fixture
def ray_cluster() -> Generator[None]:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONHASHSEED": "0"}})
    try:
        yield
    finally:
        ray.shutdown()


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_comes_to_the_verdict_of_one_process(job_file: Path, tmp_path: Path) -> None:
    run, job = tmp_path / "run", vt.load_job(job_file)
    vt.train(job, run, signer=vt.Signer.generate(), progress=False)
    seen: list[int] = []
    report = vt.audit(run, job, engine="ray", processes=2, on_step=seen.append)
    assert report.verdict is vt.Verdict.ACCEPTED, report
    assert seen == list(range(1, 9))
    other = tmp_path / "other" / "job.py"
    other.parent.mkdir()
    other.write_text(job_file.read_text())
    false = vt.load_job(other)
    other.write_text(job_file.read_text().replace("lr=0.01", "lr=0.02"))
    # The nodes load the file by themselves: another file there proves nothing against the trainer.
    report = vt.audit(run, false, engine="ray", processes=2)
    assert report.verdict is vt.Verdict.INCONCLUSIVE
    assert "changed during the audit" in str(report)


@pytest.mark.skipif(HAS_RAY, reason="Ray is installed here")
def test_without_ray_it_is_said_what_to_install(job_file: Path, tmp_path: Path) -> None:
    with pytest.raises(vt.UsageError, match="engine ray: Ray is not installed"):
        vt.audit(tmp_path, vt.load_job(job_file), engine="ray")


def test_an_unknown_engine_is_refused(job_file: Path, tmp_path: Path) -> None:
    engine: Any = "mpi"
    with pytest.raises(vt.UsageError, match="engine: expected local or ray, got 'mpi'"):
        vt.audit(tmp_path, vt.load_job(job_file), engine=engine)


def test_results_come_back_as_they_were() -> None:
    result = SegmentResult(
        steps=3,
        findings=(Finding(step=4, what="state", expected="a", got="b"),),
        malformed=("leaves/0", "cut short"),
        roundings={"sums": Tally(values=5, widest=0.5)},
    )
    assert cluster.result_of(cluster.values_of(result)) == result
