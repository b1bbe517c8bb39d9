"""Whole disputes over HTTP between three processes: a trainer, a referee and a challenger."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from dataclasses import replace

import pytest

import veritrain as vt
from tests.service.conftest import JOB
from tests.service.disputants import Command
from veritrain.adversaries import trainers
from veritrain.cli import main
from veritrain.protocols.dispute import find_difference
from veritrain.service.dispute_folder import DisputeArchive
from veritrain.transcript import Header, Signer

STEP = 5  # the first after a checkpoint
PARTIES = ("trainer", "referee", "challenger")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A job, keys, an honest run and one that cheats in a step, with the honest header."""
    folder = tmp_path_factory.mktemp("dispute")
    (folder / "job.py").write_text(
        JOB.replace("steps=12", "steps=6").replace("checkpoint_every=2", "checkpoint_every=4")
    )
    keys = {name: Signer.generate() for name in PARTIES}
    for name, key in keys.items():
        key.save(folder / f"{name}.key")
    job = vt.load_job(folder / "job.py")
    record(job, folder / "honest", keys["trainer"])
    record(trainers.wrong_rate(job, STEP, 2.0), folder / "cheating", keys["trainer"])
    return folder


def record(job, folder, signer):
    with vt.Recorder(job, folder, signer=signer) as run:
        for step in run:
            step.train()


class Processes:
    """The three processes of one dispute, in a folder of its own."""

    def __init__(self, scene, folder):
        self.scene, self.folder, self.running = scene, folder, []
        self.job = ["--job", scene / "job.py"]

    def key(self, name):
        return ["--key", self.scene / f"{name}.key"]

    def fingerprint(self, name):
        return Signer.load(self.scene / f"{name}.key").fingerprint

    @property
    def trusts(self):
        return ["--referee", self.fingerprint("referee")]

    def start(self, name, words, cheat="honest"):
        made = Command(self.folder, f"{name}{len(self.running)}", [name, *words, "--json"], cheat)
        self.running.append(made)
        return made

    def trainer(self, run, cheat="honest", port=0):
        state = ["--state", self.folder / "state", "--referee", self.fingerprint("referee")]
        words = [self.scene / run, "--port", port, *self.job, *self.key("trainer"), *state]
        return self.start("serve", words, cheat)

    def referee(self, url, *more):
        words = [url, "--port", 0, "--once", "--out", self.folder / "out", *more]
        return self.start("referee", [*words, *self.job, *self.key("referee")])

    def challenger(self, run, referee, cheat="honest", *more):
        words = [run, "--referee", referee.url(), "--out", self.folder / "mine", *more]
        words += ["--referee-key", self.fingerprint("referee")]
        return self.start("dispute", [*words, *self.job, *self.key("challenger")], cheat)

    @property
    def bundle(self):
        return next((self.folder / "out").glob("*.bundle"))


@pytest.fixture
def court(scene, tmp_path):
    made = Processes(scene, tmp_path)
    yield made
    for one in made.running:
        one.kill()
        assert "Traceback" not in one.problems


def verdict_of(referee):
    return referee.objects()[-1]


def test_a_cheating_trainer_is_rejected_and_anyone_can_check_it(court, capfd, tmp_path):
    trainer = court.trainer("cheating", "rate")
    url = trainer.url()
    referee = court.referee(url)
    challenger = court.challenger(url, referee)
    assert challenger.wait() == 1, challenger.problems
    found = challenger.objects()[0]
    assert found["difference"] == found["verdict"]["step"] == STEP
    assert found["verdict"]["conclusion"] == "rejected"
    assert referee.wait() == 1, referee.problems
    assert verdict_of(referee)["dispute"] == found["verdict"]["dispute"]
    assert court.bundle.read_bytes() == next((tmp_path / "mine").glob("*.bundle")).read_bytes()
    check_offline(court, capfd)
    while len(trainer.objects()) < 2:  # the verdict was brought to it
        time.sleep(0.01)
    assert trainer.objects()[1]["dispute"] == found["verdict"]["dispute"]


def check_offline(court, capfd):
    """With the bundle, the job and the referee's key; with less, less is known."""
    bundle = shutil.copy(court.bundle, court.folder / "mailed")
    envelope = next((court.folder / "out").glob("*.verdict.json"))
    job, trusts = [*map(str, court.job)], court.trusts
    public = Signer.load(court.scene / "referee.key").public_key.hex()
    words = ["verify-verdict", str(bundle)]
    assert main([*words, *job, *trusts]) == 0
    assert main([*words, *job, *trusts, "--run", str(court.scene / "cheating")]) == 0
    assert main([*words, *job, *trusts, "--run", "0" * 64]) == 1
    assert main([*words, *job]) == 3
    capfd.readouterr()
    assert main([*words, *trusts, "--json"]) == 3
    shown = json.loads(capfd.readouterr().out)
    assert (shown["conclusion"], shown["is_verified"]) == ("rejected", False)
    assert (
        "needs the job" in shown["problem"] and "--job" in shown["problem"]
    )  # another rate is in its code
    assert main([*words, *job, "--referee", "0" * 32]) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("veritrain.protocols.dispute.versions._installed", lambda: {"torch": "0.1"})
        assert main([*words, *job, *trusts, "--json"]) == 3
    assert "recorded with other versions" in json.loads(capfd.readouterr().out)["problem"]
    assert main(["verify-verdict", str(envelope), "--referee", public]) == 3
    assert main(["verify-verdict", str(envelope), "--referee", "ab" * 32]) == 1
    data = bytearray(court.bundle.read_bytes())
    data[len(data) // 2] ^= 1
    bundle.write_bytes(data)
    assert main([*words, *job, *trusts]) in (1, 2)


def test_a_lying_challenger_is_refuted_and_a_trainer_that_is_killed_goes_on(court):
    trainer = court.trainer("honest")
    url = trainer.url()
    referee = court.referee(url)
    challenger = court.challenger(url, referee, "rate", "--step", STEP)
    while len(list((court.folder / "state").glob("*/reply-*"))) < 2:
        assert challenger.process.poll() is None, challenger.problems
        time.sleep(0.01)
    trainer.kill()
    court.trainer("honest", port=url.rpartition(":")[2])
    assert referee.wait() == 0, referee.problems
    assert verdict_of(referee)["conclusion"] == "challenge refuted"
    assert verdict_of(referee)["step"] == STEP
    assert challenger.wait() == 3, (
        challenger.problems
    )  # its own judge is of the job that it lies by
    assert main(["verify-verdict", str(court.bundle), *map(str, court.job), *court.trusts]) == 0


def test_a_challenger_that_is_killed_goes_on(court):
    url = court.trainer("cheating", "rate").url()
    referee = court.referee(url)
    killed = court.challenger(url, referee)
    while not list((court.folder / "mine").glob("*/reply-*")):
        assert killed.process.poll() is None, killed.problems
        time.sleep(0.01)
    killed.kill()
    again = court.challenger(url, referee)
    assert again.wait() == 1, again.problems
    assert "going on" in again.problems
    assert verdict_of(referee)["dispute"] == again.objects()[0]["verdict"]["dispute"]


def test_a_silent_trainer_loses_by_the_deadline(court):
    (court.folder / "out").mkdir()
    shutil.copy(court.scene / "cheating" / "header", court.folder / "out" / "header")
    referee = court.referee("http://127.0.0.1:9", "--deadline-answer", 1.5)
    challenger = court.challenger(court.scene / "cheating", referee)
    assert challenger.wait() == 1, challenger.problems
    verdict = verdict_of(referee)
    assert (verdict["loser"], verdict["timed_out"]) == ("trainer", True)
    assert main(["verify-verdict", str(court.bundle), *court.trusts]) == 0


def test_a_referee_with_other_versions_does_not_begin(court, capfd):
    (court.folder / "out").mkdir()
    header = Header.from_bytes((court.scene / "honest" / "header").read_bytes(), where="x")
    older = replace(header, environment={**header.environment, "torch": "1.0"})
    (court.folder / "out" / "header").write_bytes(older.to_bytes())
    words = ["referee", "http://127.0.0.1:9", *court.job, *court.key("referee")]
    assert main([*map(str, words), "--out", str(court.folder / "out"), "--once"]) == 2
    assert "torch: expected '1.0'" in capfd.readouterr().err


def words_of(court, url):
    words = [court.scene / "honest", "--referee", url, *court.job, *court.key("challenger")]
    return ["dispute", *map(str, [*words, "--out", court.folder / "mine", "--json"])]


def test_nothing_differs(court, capfd):
    words = words_of(court, court.referee(court.trainer("honest").url()).url())
    for more in ([], ["--step", str(STEP)]):
        assert main([*words, *more]) == 0
        found = json.loads(capfd.readouterr().out)
        assert found == {"difference": None, "step": STEP if more else None, "verdict": None}


def test_a_run_of_another_data_set_is_rejected_without_a_dispute(scene, tmp_path, capfd):
    """Where the data set reads files, the job files are the same."""
    job = vt.load_job(scene / "job.py")
    made = job.dataset() if callable(job.dataset) else job.dataset
    other = [made[index] for index in reversed(range(len(made)))]
    record(dataclasses.replace(job, dataset=other), tmp_path / "run", Signer.generate())
    words = [tmp_path / "run", "--referee", "http://127.0.0.1:9", "--job", scene / "job.py"]
    words += ["--key", scene / "challenger.key"]
    for more in ([], ["--step", STEP]):
        assert main(["dispute", *map(str, [*words, *more])]) == 1
        assert "of another data set: reject it" in capfd.readouterr().err


def test_what_does_not_fit_shows_before_the_run_is_recomputed(court, capfd, monkeypatch):
    monkeypatch.setattr(find_difference, "first_difference", pytest.fail)
    assert main(words_of(court, "http://127.0.0.1:9")) == 2
    assert "127.0.0.1:9" in capfd.readouterr().err
    url = court.referee(court.trainer("honest").url()).url()
    held = DisputeArchive(court.folder / "mine")
    assert main(words_of(court, url)) == 2
    assert "by another process" in capfd.readouterr().err
    held._store.unlock()
