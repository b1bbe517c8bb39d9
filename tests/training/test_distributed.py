"""A run that several processes train is the run of one process, byte for byte, whatever happens to
them."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

import veritrain as vt
from tests import machines
from tests.training.ranks_support import ended, start, start_module, torchrun, wait_for_commit
from veritrain import cli
from veritrain.transcript import Transcript

JOB = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import veritrain as vt


def data():
    x = torch.randn(120, 6)
    return TensorDataset(x, (x.sum(1) > 0).long())


def model():
    return nn.Sequential(
        nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(8, 2),
    )


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def adam(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def job():
    return vt.Job(
        model=model, dataset=data, loss=loss, optimizer=adam, batch_size=40, steps={steps}, seed=7,
        shards={shards}, accumulate={accumulate}, clip_norm=1.0, checkpoint_every=3,
    )
"""


@dataclass(frozen=True)
class Home:
    """A folder with a job file, a key, and the run of one process."""

    folder: Path

    def job(self, shards: int = 4, steps: int = 8, accumulate: int = 1) -> Path:
        """A job file. The name is in the commitment, so all have one."""
        file = self.folder / f"{shards}-{steps}-{accumulate}" / "job.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(
            JOB.replace("{steps}", str(steps))
            .replace("{shards}", str(shards))
            .replace("{accumulate}", str(accumulate))
        )
        return file

    @property
    def key(self) -> Path:
        return self.folder / "key.pem"

    @property
    def alone(self) -> Path:
        """The run of one process."""
        return self.folder / "alone"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("ranks"))
    signer = vt.Signer.generate()
    signer.save(home.key)
    vt.train(vt.load_job(home.job()), home.alone, signer=signer, progress=False)
    return home


def content(run: Path) -> dict[str, bytes]:
    return {
        file.relative_to(run).as_posix(): file.read_bytes()
        for file in sorted(run.rglob("*"))
        if file.is_file() and file.stat().st_size
    }


def digest(run: Path) -> str:
    return Transcript.open(run).heads[-1].head.root.hex()


def test_torchrun_gives_the_run_of_one_process_and_an_audit_accepts_it(home, tmp_path) -> None:
    run = tmp_path / "run"
    process = torchrun(
        [home.job(), "--out", run, "--key", home.key], "--nproc-per-node", "2", "--standalone"
    )
    (errors,) = ended([process])
    assert process.returncode == 0, errors
    assert content(run) == content(home.alone)
    assert "rank 1" not in errors
    vt.audit(run, vt.load_job(home.job())).require_accepted()


def test_killed_and_resumed_by_another_number_of_ranks(home, tmp_path) -> None:
    run, job = tmp_path / "run", home.job(steps=400)
    ranks = start(3, job, "--out", run, "--key", home.key)
    wait_for_commit(run, 6, *ranks)
    ranks[1].kill()
    errors = ended(ranks)
    assert [rank.returncode for rank in ranks] == [2, -9, 2]
    assert "rank 1 is lost: its connection closed" in errors[0]
    assert "go on with: torchrun --nproc-per-node 3 -m veritrain train" in errors[0]
    assert errors[2] == ""  # rank 0 speaks for all
    done = len(Transcript.open(run).leaves) - 1
    assert done >= 6
    ranks = start(2, job, "--out", run, "--key", home.key, "--resume")
    wait_for_commit(run, (done // 3 + 2) * 3, *ranks)
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    errors = ended(ranks)
    assert [rank.returncode for rank in ranks] == [143, 143]
    assert "terminated, recorded up to step" in errors[0]
    leaves = Transcript.open(run).leaves
    assert len(leaves) > done + 3
    expected = Transcript.open(home.alone).leaves
    assert [leaf.state for leaf in leaves[:9]] == [leaf.state for leaf in expected]


def test_the_rank_that_flips_a_bit_is_named_and_nothing_of_it_is_recorded(home, tmp_path) -> None:
    run = tmp_path / "run"
    ranks = start(3, home.job(), "--out", run, "--key", home.key, module="tests.training.odd_rank")
    errors = ended(ranks)
    assert [rank.returncode for rank in ranks] == [1, 1, 1]
    assert "step 3: the ranks do not have one state; beside rank 0, rank 1: tensor" in errors[0]
    assert "'model/2.weight': expected float32 [8, 16] " in errors[0]
    assert "recorded up to step 0" in errors[0]
    assert errors[1:] == ["", ""]


@pytest.mark.long
def test_sigterm_to_torchrun_and_a_resume_by_more_ranks(home, tmp_path) -> None:
    run, job = tmp_path / "run", home.job(steps=60)
    words = [job, "--out", run, "--key", home.key, "--resume"]  # begins it where there is none
    process = torchrun(words, "--nproc-per-node", "2", "--standalone")
    wait_for_commit(run, 3, process)
    process.terminate()
    (errors,) = ended([process])
    assert process.returncode != 0
    assert "terminated, recorded up to step" in errors
    assert 3 <= len(Transcript.open(run).leaves) - 1 < 60
    process = torchrun(words, "--nproc-per-node", "4", "--standalone")
    (errors,) = ended([process])
    assert process.returncode == 0, errors
    vt.audit(run, vt.load_job(job)).require_accepted()


@pytest.mark.long
def test_torchrun_restarts_the_ranks_when_one_dies(home, tmp_path) -> None:
    run, job = tmp_path / "run", home.job(steps=60)
    words = [job, "--out", run, "--key", home.key, "--resume"]
    process = torchrun(words, "--nproc-per-node", "2", "--standalone", "--max-restarts", "1")
    wait_for_commit(run, 3, process)
    ranks = [int(pid) for pid in children(process.pid)]
    os.kill(ranks[-1], signal.SIGKILL)
    (errors,) = ended([process])
    assert process.returncode == 0, errors
    vt.audit(run, vt.load_job(job)).require_accepted()


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.long
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_ends_the_others(frozen, home, tmp_path) -> None:
    run, job = tmp_path / "run", home.job(steps=2000)
    ranks = start(3, job, "--out", run, "--key", home.key, "--deadline", "4")
    wait_for_commit(run, 6, *ranks)
    ranks[frozen].send_signal(signal.SIGSTOP)
    others = [rank for number, rank in enumerate(ranks) if number != frozen]
    try:
        errors = ended(others, timeout=60)
        assert f"rank {frozen} is lost: no sign of life for 4 s" in errors[0]
    finally:
        ranks[frozen].kill()
    Transcript.open(run).verify_chain()


@pytest.mark.long
def test_two_nodes_on_loopback(home, tmp_path) -> None:
    run = tmp_path / "run"
    where = ["--master-addr", "127.0.0.1", "--master-port", "29437"]
    agents = [
        torchrun(
            [home.job(), "--out", run, "--key", home.key],
            "--nnodes", "2", "--nproc-per-node", "2", "--node-rank", str(node), *where,
        )
        for node in (0, 1)
    ]  # fmt: skip
    errors = ended(agents)
    assert [agent.returncode for agent in agents] == [0, 0], errors
    assert content(run) == content(home.alone)


@pytest.mark.long
@pytest.mark.parametrize("size", [2, 3, 4])
def test_machines_may_be_mixed(size, home, tmp_path) -> None:
    run = tmp_path / "run"
    mixed = [machines.MACHINES[(size + i) % len(machines.MACHINES)] for i in range(size)]
    ranks = start(size, home.job(), "--out", run, "--key", home.key, on=mixed)
    errors = ended(ranks, timeout=500)
    assert [rank.returncode for rank in ranks] == [0] * size, errors
    assert content(run) == content(home.alone)


@pytest.mark.long
@pytest.mark.parametrize("shards", [1, 2, 8])
def test_any_number_of_ranks_gives_one_run(shards, home, tmp_path) -> None:
    job = home.job(shards=shards)
    alone = tmp_path / "alone"
    signer = vt.Signer.load(home.key)
    vt.train(vt.load_job(job), alone, signer=signer, progress=False)
    for size in range(1, min(4, shards) + 1):
        run = tmp_path / f"run{size}"
        ranks = start(size, job, "--out", run, "--key", home.key)
        errors = ended(ranks)
        assert [rank.returncode for rank in ranks] == [0] * size, errors
        assert content(run) == content(alone), size


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(("size", "counts"), [(2, "2,4,8"), (3, "4,8"), (4, "4,8")])
def test_families_by_ranks_on_unlike_machines(size, counts) -> None:
    arguments = (20, counts)
    alone = json.loads(
        machines.run(
            machines.MACHINES[0], "tests.shard_digests", *map(str, arguments), timeout=3600
        )
    )
    on = [machines.MACHINES[(size + i) % len(machines.MACHINES)] for i in range(size)]
    ranks = start_module(size, "tests.shard_digests", arguments, on)
    found = [json.loads(rank.communicate(timeout=3600)[0]) for rank in ranks]
    assert len(alone) >= 6 * len(counts.split(","))
    assert all(lines == alone for lines in found)


def test_a_world_of_one_is_no_other_than_no_world(home, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")  # as some clusters set it, without the rest
    run = tmp_path / "run"
    assert cli.main(["train", str(home.job()), "--out", str(run), "--key", str(home.key)]) == 0
    assert content(run) == content(home.alone)


def test_ranks_without_a_shard_are_refused(home, tmp_path) -> None:
    ranks = start(2, home.job(shards=1), "--out", tmp_path / "run", "--key", home.key)
    errors = ended(ranks)
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "not divided (shards=1), and 2 processes were started; set shards=2" in errors[0]
    assert errors[1] == ""
