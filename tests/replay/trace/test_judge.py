"""Disputes over real steps: whoever tells the truth never loses, and the liar does, wherever the
lie is."""

from __future__ import annotations

import random
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn
from torch.utils.data import default_collate

from tests import jobs, zoo
from tests.replay.trace.court import Liar, Scene, changed, decide, hold, read, rechained
from veritrain.adversaries import rounders, trainers
from veritrain.encoding import digest
from veritrain.errors import InconclusiveError, TranscriptError
from veritrain.job.data import Batches
from veritrain.numerics.logged.grid import follow, round_to
from veritrain.numerics.logged.rounding import Following
from veritrain.protocols.dispute.find_difference import challenger_claims, first_difference
from veritrain.protocols.dispute.judge import Loser
from veritrain.protocols.dispute.judging import parts
from veritrain.protocols.dispute.judging.operator_judge import OperatorJudge
from veritrain.protocols.dispute.offline_check import check_bundle
from veritrain.protocols.dispute.replayed_claims import ReplayedClaims
from veritrain.replay.trace.tracer import Tracer

STEP = 3


class Plain(jobs.Points):
    """Records that are not augmented: their bytes can be shown to a referee without the data
    set."""

    def __getitem__(self, index):
        x = torch.arange(6, dtype=torch.float32) * (index + 1) / 64
        return {"x": x, "weight": 1.0 + index / 64}, index % 3


def build(**changes):
    return jobs.make(steps=5, checkpoint_every=2, dataset=Plain(), **changes)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene.of(build(), tmp_path_factory.mktemp("scene") / "run")


def another_seed(job):
    return replace(job, seed=job.seed + 1)


def forgetful(job):
    """The optimiser's moments are zero again."""

    def optimizer(model):
        made = job.optimizer(model)

        def forget(*_):
            for state in made.state.values():
                state["exp_avg"].zero_()

        made.register_step_pre_hook(forget)
        return made

    return replace(job, optimizer=optimizer)


def no_dropout(job):
    def model():
        made = job.model()
        made.drop = nn.Dropout(0.5)
        return made

    return replace(job, model=model)


# a party replays from the checkpoint before: the disputed step is the first that its program does
CHEATS = {
    "weights": lambda job: trainers.alter_weight(job, 1),
    "rate": lambda job: trainers.wrong_rate(job, 1, 2.0),
    "no update": lambda job: trainers.skip_update(job, 1),
    "loss": lambda job: trainers.flatter_loss(job, 0.5),
    "data": lambda job: replace(job, dataset=Other()),
    "seed": another_seed,
    "optimiser's state": forgetful,
    "model": no_dropout,
    "clipping": lambda job: replace(job, clip_norm=0.01),
}


class Other(Plain):
    def __getitem__(self, index):
        fields, label = super().__getitem__(index)
        return fields, (label + 1) % 3


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheating_trainer_loses(scene, cheat):
    verdict = decide(scene, STEP, trainer=Liar(scene, STEP, CHEATS[cheat](scene.job)))
    assert verdict.loser is Loser.TRAINER, verdict.reason


def test_a_false_final_model_loses(scene):
    last = len(scene.leaves) - 1
    liar = Liar(scene, last, trainers.alter_weight(scene.job, 1))
    assert decide(scene, last, trainer=liar).loser is Loser.TRAINER
    assert decide(scene, last, challenger=liar).loser is Loser.CHALLENGER


@pytest.mark.parametrize("cheat", CHEATS)
def test_a_cheating_challenger_loses(scene, cheat):
    verdict = decide(scene, STEP, challenger=Liar(scene, STEP, CHEATS[cheat](scene.job)))
    assert verdict.loser is Loser.CHALLENGER, verdict.reason


def without_the_job(scene, referee):
    """The verdict that somebody comes to who has the bundle and the referee's key; None where it
    takes the job."""
    key = scene.referee.public_key
    try:
        return check_bundle(referee.bundle(), judge=OperatorJudge(None), referees=[key])
    except InconclusiveError as error:
        return None if "needs the job" in str(error) else pytest.fail(str(error))


@pytest.mark.parametrize("side", ["trainer", "challenger"])
@pytest.mark.parametrize("cheat", CHEATS)
def test_a_bundle_alone_shows_who_lied_unless_it_takes_the_jobs_code(scene, cheat, side):
    referee = hold(scene, STEP, **{side: Liar(scene, STEP, CHEATS[cheat](scene.job))})
    coded = ("entry", "batch", "what the trainer opened is false: record")
    expected = None if referee.verdict.reason.startswith(coded) else referee.verdict
    assert without_the_job(scene, referee) == expected, referee.verdict.reason


def test_step_0_takes_the_job(scene):
    referee = hold(scene, 0, trainer=Liar(scene, 0, trainers.wrong_start(scene.job)))
    assert without_the_job(scene, referee) is None


def change_somewhere(seed, path):
    """Replace one value anywhere in one entry."""
    rng = random.Random(seed)

    def change(bodies):
        index = rng.randrange(len(bodies))
        field = rng.choice(list(bodies[index]))
        bodies[index][field], *what = changed(bodies[index][field], rng)
        path.append((index, field, *what))
        return bodies

    return change


@pytest.mark.parametrize("seed", range(50))
def test_a_change_anywhere_in_a_trace_is_found(scene, seed):
    path = []
    liar = Liar(scene, STEP, change=change_somewhere(seed, path))
    verdict = decide(scene, STEP, trainer=liar)
    assert verdict.loser is Loser.TRAINER, (path, verdict.reason)
    verdict = decide(scene, STEP, challenger=liar)
    assert verdict.loser is Loser.CHALLENGER, (path, verdict.reason)


@pytest.mark.parametrize(
    "cheat", [rounders.Dropping, rounders.Huge, rounders.Flipping, rounders.Inventing]
)
@pytest.mark.parametrize("obeys", [False, True])
def test_a_forged_rounding_log_loses(tmp_path, monkeypatch, cheat, obeys):
    """Whether the trainer admits that nobody can follow its log, or shows a trace that obeys it
    blindly."""
    with rounders.rounding_by(cheat):
        scene = Scene.of(zoo.jobs(2, "logged-bf16")["convnet-sgd"], tmp_path / "run")
    trainer = None
    if obeys:
        with monkeypatch.context() as patch:
            patch.setattr(Following, "round", blindly)
            patch.setattr(Following, "finish", lambda self: self._data)
            trainer = Liar(scene, 1, leaf=scene.leaves[1])
    challenger = Liar(scene, 1)
    verdict = decide(scene, 1, trainer=trainer, challenger=challenger)
    assert verdict.loser is Loser.TRAINER, verdict.reason


def blindly(self, tensors):
    """Follow a log without a look at it."""
    try:
        claimed = self._log.next(tensors.values.size)
    except TranscriptError:
        claimed = None
    grid = self.logged_grid(tensors)
    round_to(grid, tensors.values, tensors.out)
    if claimed is not None:
        follow(
            grid,
            tensors.values,
            tensors.out,
            claimed.places,
            claimed.up,
            self.possible_grid(tensors),
        )


def test_honest_logged_steps_win(tmp_path):
    scene = Scene.of(build(numerics="logged"), tmp_path / "run")
    for seed in range(20):
        liar = Liar(scene, STEP, change=change_somewhere(seed, []))
        assert decide(scene, STEP, trainer=liar).loser is Loser.TRAINER
        assert decide(scene, STEP, challenger=liar).loser is Loser.CHALLENGER


class Frozen:
    """The records as they are committed, drawn once for all."""

    def __init__(self, job):
        batches = Batches(job)
        self._records = [batches.record(index) for index in range(batches.count)]

    def __len__(self):
        return len(self._records)

    def __getitem__(self, index):
        return self._records[index]


@pytest.fixture(scope="module")
def augmented(tmp_path_factory):
    job = replace(build(), dataset=jobs.Points())
    return Scene.of(job, tmp_path_factory.mktemp("augmented") / "run")


class Showing(Liar):
    """Opens the records that the data set has."""

    def detail(self, step, index, what):
        claims = ReplayedClaims(self._scene.job, self._scene.transcript, [])
        return (claims if what["open"] == "records" else self._claims).detail(step, index, what)

    def __init__(self, scene, step, job):
        super().__init__(scene, step, job)
        self._scene = scene


@pytest.mark.parametrize("side", ["trainer", "challenger"])
@pytest.mark.parametrize("dataset", [Frozen, lambda job: Other()])
def test_a_batch_of_records_that_draw_is_left_open(augmented, dataset, side):
    """Whatever a liar claims, the very batch too that the committed records make."""
    job = replace(augmented.job, dataset=dataset(augmented.job))
    verdict = decide(augmented, STEP, **{side: Showing(augmented, STEP, job)})
    assert verdict.loser is Loser.NONE
    assert "draws random numbers" in verdict.reason


def test_records_that_draw_cannot_be_shown_as_others(augmented):
    liar = Liar(augmented, STEP, replace(augmented.job, dataset=Frozen(augmented.job)))
    verdict = decide(augmented, STEP, trainer=liar)
    assert verdict.loser is Loser.TRAINER
    assert "what the trainer opened is false" in verdict.reason


class Mixed(Plain):
    """Two records of forty draw."""

    def __getitem__(self, index):
        fields, label = super().__getitem__(index)
        if index in (3, 4):
            fields["x"] = fields["x"] + torch.rand(6)
        return fields, label


@pytest.mark.parametrize("side", ["trainer", "challenger"])
def test_batches_without_the_records_that_draw_are_decided(tmp_path, side):
    scene = Scene.of(replace(build(), dataset=Mixed()), tmp_path / "run")
    batches = Batches(scene.job)
    for step in (1, 3, 5):  # after a checkpoint
        liar = Showing(scene, step, replace(scene.job, dataset=Other()))
        verdict = decide(scene, step, **{side: liar})
        is_random = bool({3, 4} & {*batches.indices(step)})
        assert verdict.loser.value == ("none" if is_random else side), verdict.reason


@pytest.mark.parametrize("collate", [None, default_collate])
def test_two_false_batches_lose_both_unless_collate_may_be_why(tmp_path, collate):
    scene = Scene.of(build(collate=collate), tmp_path / "run")
    liars = [
        Showing(scene, STEP, job)
        for job in (replace(scene.job, dataset=Other()), another_seed(scene.job))
    ]
    verdict = decide(scene, STEP, *liars)
    assert verdict.loser is (Loser.BOTH if collate is None else Loser.NONE), verdict.reason


def noisy_collate(records):
    fields, labels = default_collate(records)
    return {**fields, "x": fields["x"] + torch.rand(6)}, labels


@pytest.mark.parametrize("side", ["trainer", "challenger"])
def test_random_numbers_of_collate_are_the_same_for_the_judge(tmp_path, side):
    scene = Scene.of(build(collate=noisy_collate), tmp_path / "run")
    liar = Liar(scene, STEP, replace(scene.job, dataset=Other()))
    assert decide(scene, STEP, **{side: liar}).loser.value == side


@pytest.mark.parametrize("side", ["trainer", "challenger"])
def test_a_wrong_start_loses(scene, side):
    liar = Liar(scene, 0, trainers.wrong_start(scene.job))
    verdict = decide(scene, 0, **{side: liar})
    assert verdict.loser.value == side


def test_a_leaf_that_its_own_trace_contradicts_loses(scene):
    """The state is right and the leaf says otherwise."""
    liar = Liar(scene, STEP, leaf=replace(scene.leaves[STEP], loss=0.5))
    verdict = decide(scene, STEP, trainer=liar)
    assert verdict.loser is Loser.TRAINER
    assert "loss: expected" in verdict.reason


def test_of_two_liars_the_one_whose_lie_comes_first_loses(scene):
    for seed in range(30):
        lies = [], []
        first = Liar(scene, STEP, change=change_somewhere(seed, lies[0]))
        second = Liar(scene, STEP, change=change_somewhere(seed + 1000, lies[1]))
        (trainer, *_), (challenger, *_) = lies[0][0], lies[1][0]  # index of the entry
        if first.leaves[STEP].digest == second.leaves[STEP].digest:  # nothing to challenge
            losers = {Loser.CHALLENGER}
        elif trainer == challenger:
            losers = {Loser.TRAINER, Loser.CHALLENGER, Loser.BOTH}
        else:
            losers = {Loser.TRAINER if trainer < challenger else Loser.CHALLENGER}
        assert decide(scene, STEP, first, second).loser in losers, (seed, lies)


class Faulty(Liar):
    """Computes as it should, but for one bit of one result, and goes on from there."""

    def __init__(self, scene, step, index, place=0):
        self._index, self._place = index, place
        with self._fault():
            super().__init__(scene, step)

    def detail(self, step, index, what):
        with self._fault():
            return super().detail(step, index, what)

    def _fault(self):
        own, index, place = Tracer._own, self._index, self._place

        def flip(tracer, result):
            result = own(tracer, result)
            if tracer._index == index and result.numel() and result.dtype == torch.float32:
                result.reshape(-1).view(torch.int32)[place % result.numel()] ^= 1
            return result

        return mock.patch.object(Tracer, "_own", flip)


@pytest.mark.parametrize("whole", [True, False])
def test_one_wrong_bit_of_a_result_is_found_whole_or_in_parts(scene, monkeypatch, whole):
    monkeypatch.setattr(parts, "WHOLE_BYTES", 1 << 30 if whole else 0)
    entries = read(scene.claims().replayed(STEP).entries)
    operators = [e for e in entries if e.body["kind"] == "operator" and e.body["results"]]
    in_parts = 0
    for entry in operators[::3]:
        liar = Faulty(scene, STEP, entry.index, place=entry.index)
        if liar.entries[entry.index] == entries[entry.index].to_bytes():
            continue  # no float32 result of its own
        referee = hold(scene, STEP, trainer=liar)
        verdict = referee.verdict
        assert verdict.loser is Loser.TRAINER, (entry.body["operator"], verdict.reason)
        assert without_the_job(scene, referee) == verdict
        assert f"entry {entry.index}" in verdict.reason
        assert decide(scene, STEP, challenger=liar).loser is Loser.CHALLENGER
        in_parts += "in bytes" in verdict.reason
    assert (in_parts == 0) if whole else (in_parts > 5)


class Meddling:
    """Claims of a liar that opens for the judge what has one value changed somewhere."""

    def __init__(self, liar, rng):
        self._liar, self._rng = liar, rng
        self.leaves = liar.leaves
        self.leaf, self.trace, self.operator = liar.leaf, liar.trace, liar.operator

    def up_to(self, step):
        return Meddling(self._liar.up_to(step), self._rng)

    def detail(self, step, index, what):
        return changed(self._liar.detail(step, index, what), self._rng)[0]


@pytest.mark.parametrize("seed", range(12))
def test_what_is_opened_falsely_helps_nobody(scene, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr(parts, "WHOLE_BYTES", rng.choice([0, 1 << 18]))
    cheat = rng.choice([*CHEATS, "bit", "bit", "bit"])
    if cheat == "bit":
        liar = Faulty(scene, STEP, rng.randrange(1, 40), rng.randrange(100))
    else:
        liar = Liar(scene, STEP, CHEATS[cheat](scene.job))
    assert decide(scene, STEP, trainer=Meddling(liar, rng)).loser is Loser.TRAINER
    assert decide(scene, STEP, challenger=Meddling(liar, rng)).loser is Loser.CHALLENGER


class Renamed:
    """A run of which one leaf says something else about its rounding log."""

    def __init__(self, scene, step, log):
        self._transcript, self._step, self._log = scene.transcript, step, log
        rounding = None if log is None else digest("rounding log", log)
        leaves = list(scene.leaves)
        leaves[step] = replace(
            leaves[step], rounding=rounding, state=digest("tensor", b"another"), loss=0.5
        )
        self.leaves = tuple(rechained(leaves))

    def __getattr__(self, name):
        return getattr(self._transcript, name)

    def rounding_log(self, step):
        return self._log if step == self._step else self._transcript.rounding_log(step)


@pytest.fixture(scope="module", params=["exact", "logged"])
def misnamed(request, tmp_path_factory):
    """An honest run, and the same with a leaf that names a log where there is none, or none where
    there is one."""
    job = build(numerics=request.param)
    scene = Scene.of(job, tmp_path_factory.mktemp("misnamed") / "run")
    return scene, Renamed(scene, STEP, b"" if request.param == "exact" else None)


def test_a_leaf_that_is_false_about_its_rounding_log_can_be_disputed(misnamed):
    scene, run = misnamed
    assert first_difference(scene.job, run) == STEP
    own = challenger_claims(scene.job, run, STEP)
    assert own.leaf(STEP).entry == scene.leaves[STEP].to_bytes()
    challenger = Plainly(own, scene.leaves[: STEP + 1])
    for change in (None, change_somewhere(1, [])):
        liar = Liar(scene, STEP, change=change, leaf=run.leaves[STEP])
        verdict = decide(scene, STEP, trainer=liar, challenger=challenger)
        assert verdict.loser is Loser.TRAINER, verdict.reason
        assert "rounding log" in verdict.reason


def test_a_challenger_that_is_false_about_a_rounding_log_loses(misnamed):
    scene, run = misnamed
    for change in (None, change_somewhere(1, [])):
        liar = Liar(scene, STEP, change=change, leaf=run.leaves[STEP])
        verdict = decide(scene, STEP, challenger=liar)
        assert verdict.loser is Loser.CHALLENGER, verdict.reason
        assert "rounding log" in verdict.reason


class Plainly:
    """Claims of a challenger, with its leaves at hand."""

    def __init__(self, claims, leaves):
        self.leaves = leaves
        self.leaf, self.trace = claims.leaf, claims.trace
        self.operator, self.detail = claims.operator, claims.detail

    def up_to(self, step):
        return self
