"""Lies that fit together, about jobs with unusual memory, and openings that leave something out.

Each job is an ordinary one; the liar is tried as trainer and as challenger.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import veritrain as vt
from tests.replay.trace.court import Liar, Scene, decide, read
from tests.replay.trace.test_judge import CHEATS, STEP, Faulty, build
from veritrain.encoding import digest, encode
from veritrain.protocols.dispute.judge import Loser
from veritrain.protocols.dispute.judging import judged_case, parts
from veritrain.transcript import TensorEntry, merkle

SIDES = ("trainer", "challenger")


class Rows:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.arange(6, dtype=torch.float32) * (index + 1) / 64, index % 3


class Base(nn.Module):
    """A linear layer; others add what is unusual."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x)


class SliceOfLonger(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randn(50, 6)[:20])

    def forward(self, x):
        return self.layer(x + self.table[3])


class TwoNames(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.arange(80.0) / 80)
        self.register_buffer("square", self.table.view(8, 10))

    def forward(self, x):
        return self.layer(x) + self.table.sum() + self.square.sum()


class Tied(Base):
    def __init__(self):
        super().__init__()
        self.table = nn.Linear(6, 6)
        self.twin = nn.Linear(6, 6)
        self.twin.weight = self.table.weight

    def forward(self, x):
        return self.layer(self.twin(self.table(x)))


class ShortConstant(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor([1.5, 2.0]))

    def forward(self, x):
        return self.layer(x) * torch.tensor([self.scale[0], self.scale[1], 1.0]).sum()


class HiddenRead(Base):
    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.ones(40))

    def forward(self, x):
        return self.layer(x) * torch.tensor([self.table[0], self.table[20]]).sum()


class Last(nn.Module):
    """Images, with weights in the order of channels last."""

    def __init__(self):
        super().__init__()
        self.images = nn.Conv2d(1, 4, 2)
        self.layer = nn.Linear(8, 3)
        self.to(memory_format=torch.channels_last)

    def forward(self, x):
        return self.layer(self.images(x.reshape(-1, 1, 2, 3)).flatten(1))


def loss(model, batch):
    x, y = (torch.as_tensor(part) for part in batch[:2])
    return F.cross_entropy(model(x), y)


def transposed(rows):
    return torch.stack([row[0] for row in rows], 1).t(), torch.tensor([row[1] for row in rows])


def twice(rows):
    x = torch.stack([row[0] for row in rows])
    return x, torch.tensor([row[1] for row in rows]), x[:2]


def fortran(rows):
    x = np.stack([row[0].numpy() for row in rows])
    return np.asfortranarray(x), np.array([row[1] for row in rows]), np.float32(1.5)


def job(model=Base, collate=None):
    return vt.Job(
        model=model, dataset=Rows(), loss=loss, collate=collate, batch_size=8, steps=4, seed=1,
        optimizer=lambda m: torch.optim.AdamW(m.parameters(), lr=0.01), checkpoint_every=2,
    )  # fmt: skip


def of_met(prefix, found):
    """Another digest for the first cell whose origin begins so."""

    def change(bodies):
        for body in bodies:
            for cell, size, origin in body.get("met", []):
                if origin[: len(prefix)] == prefix:
                    read = next(row for row in body["reads"] if row[0] == cell)
                    read[3] = digest("tensor", bytes(size)) if found == "zeros" else bytes(32)
                    return bodies
        raise AssertionError(prefix)

    return change


def another_argument(bodies):
    """A structural lie, in the last operator."""
    next(b for b in reversed(bodies) if b["kind"] == "operator")["arguments"].append(7)
    return bodies


def cell_for_tensor(bodies):
    """The digest of a whole cell for that of a buffer in it, with a tree and a state that fit."""
    frontier = merkle.Frontier()
    for body in bodies:
        if body["kind"] == "state":
            if body["tensor"]["name"] == "model/table":
                body["tensor"]["digest"] = body["reads"][0][3]
            frontier.append(TensorEntry.from_value(body["tensor"]).to_bytes())
            body["peaks"] = list(frontier.peaks)
    bodies[-1]["state"] = frontier.root()
    return bodies


@dataclass
class Lie:
    job: vt.Job
    change: Any


LIES = {
    "buffer that is a slice of longer memory": Lie(job(SliceOfLonger), cell_for_tensor),
    "two buffers in one memory, zeros": Lie(job(TwoNames),
        of_met(["state", "model/square"], "zeros")),
    "two buffers in one memory, structure": Lie(job(TwoNames), another_argument),
    "tied weights": Lie(job(Tied), of_met(["state", "model/table.weight"], "other")),
    "tied weights, structure": Lie(job(Tied), another_argument),
    "short constant": Lie(job(ShortConstant), of_met(["constant"], "zeros")),
    "channels last, structure": Lie(job(Last), another_argument),
    "channels last, moment": Lie(job(Last), of_met(["state", "optimizer/images.weight/exp_avg"],
        "other")),
    "transposed batch": Lie(job(collate=transposed), of_met(["batch", 0], "other")),
    "transposed batch, structure": Lie(job(collate=transposed), another_argument),
    "batch with two views of one memory": Lie(job(collate=twice), another_argument),
    "batch of arrays": Lie(job(collate=fortran), another_argument),
}  # fmt: skip


@pytest.mark.parametrize("name", LIES)
def test_a_lie_about_unusual_memory_loses(tmp_path, name):
    lie = LIES[name]
    scene = Scene.of(lie.job, tmp_path / "run")
    for side in SIDES:
        verdict = decide(scene, STEP, **{side: Liar(scene, STEP, change=lie.change)})
        assert verdict.loser.value == side, verdict.reason


@pytest.mark.parametrize("change", [of_met(["constant"], "zeros"), another_argument])
def test_a_job_that_acts_upon_hidden_values_is_left_open(tmp_path, change):
    scene = Scene.of(job(HiddenRead), tmp_path / "run")
    for side in SIDES:
        verdict = decide(scene, STEP, **{side: Liar(scene, STEP, change=change)})
        assert verdict.loser is Loser.NONE, verdict.reason


def test_traces_do_not_depend_on_the_checkpoint_that_a_replay_began_at(tmp_path):
    scene = Scene.of(job(Last), tmp_path / "run")
    near, far = scene.claims(), scene.claims()
    replay = far.replayed(STEP)
    replay._transcript = Far(scene.transcript)
    assert list(replay.entries) == list(near.replayed(STEP).entries)


class Far:
    """A transcript that stores the first state alone."""

    def __init__(self, transcript):
        self._transcript = transcript
        self.checkpoint_steps = ()

    def __getattr__(self, name):
        return getattr(self._transcript, name)


class Leaving:
    """Claims of a liar that leaves one key out of what it opens."""

    def __init__(self, liar, path):
        self._liar, self._path, self.leaves = liar, path, liar.leaves
        self.leaf, self.trace, self.operator = liar.leaf, liar.trace, liar.operator

    def detail(self, step, index, what):
        found = deepcopy(self._liar.detail(step, index, what))
        part = found
        for key in self._path[:-1]:
            part = part.get(key, {}) if isinstance(part, dict) else {}
        if isinstance(part, dict):
            part.pop(self._path[-1], None)
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene.of(build(), tmp_path_factory.mktemp("scene") / "run")


@pytest.mark.parametrize(
    "path",
    [
        ("entries",), ("state",), ("batch",), ("state", "state"), ("state", "contents"),
        ("state", "contents", "optimizer/hyper"), ("state", "contents", "scheduler/state"),
        ("state", "contents", "model/first.bias"),
    ],
)  # fmt: skip
def test_what_is_left_out_of_an_opening_convicts(scene, path):
    liar = Liar(scene, STEP, CHEATS["model"](scene.job))
    verdict = decide(scene, STEP, trainer=Leaving(liar, path))
    assert verdict.loser is Loser.TRAINER, verdict.reason
    assert "opened is false" in verdict.reason


@pytest.mark.parametrize("rows", ["met", "reads", "writes"])
def test_a_row_that_is_there_twice_is_false(scene, rows):
    def twice(bodies):
        body = next(body for body in bodies if body.get(rows))
        body[rows].append(body[rows][0])
        return bodies

    for side in SIDES:
        verdict = decide(scene, STEP, **{side: Liar(scene, STEP, change=twice)})
        assert verdict.loser.value == side, verdict.reason


class Terse:
    """Claims of a party whose messages hold no more than so many bytes."""

    def __init__(self, claims, leaves, most):
        self.leaves, self._claims, self._most = leaves, claims, most
        self.leaf, self.trace, self.operator = claims.leaf, claims.trace, claims.operator

    def up_to(self, step):
        return self

    def detail(self, step, index, what):
        found = self._claims.detail(step, index, what)
        return found if len(encode(found)) <= self._most else None


class Table(Base):
    """Its table alone is more than a message holds."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(3000, 6)

    def forward(self, x):
        return self.layer(x + self.table.weight[:8])


class TableInLonger(Table):
    def __init__(self):
        super().__init__()
        self.register_buffer("longer", torch.randn(4000, 6)[:3000])

    def forward(self, x):
        return super().forward(x + self.longer[:8])


LARGE = {
    "a parameter": (Table, "model/table.weight"),
    "a moment": (Table, "optimizer/table.weight/exp_avg"),
    "part of a cell": (TableInLonger, "model/longer"),
}


@pytest.mark.parametrize("name", LARGE)
@pytest.mark.parametrize("side", SIDES)
def test_nobody_loses_for_a_tensor_that_is_too_long_to_open(tmp_path, monkeypatch, name, side):
    model, tensor = LARGE[name]
    most = 1 << 16
    monkeypatch.setattr(judged_case, "MOST_BYTES", most)
    scene = Scene.of(job(model), tmp_path / "run")
    liar = Liar(scene, STEP, change=of_met(["state", tensor], "other"))
    sides = {
        "trainer": Terse(scene.claims(), scene.leaves, most),
        "challenger": Terse(scene.claims(STEP + 1), scene.leaves, most),
    }
    liar = liar if side == "trainer" else liar.up_to(STEP)
    sides[side] = Terse(liar, liar.leaves, most)
    verdict = decide(scene, STEP, **sides)
    expected = "none" if name == "part of a cell" else side
    assert verdict.loser.value == expected, verdict.reason


@pytest.mark.parametrize("most", [1 << 9, 1 << 30])
@pytest.mark.parametrize("side", SIDES)
def test_nobody_loses_for_parts_that_are_too_long_to_open(scene, monkeypatch, most, side):
    monkeypatch.setattr(parts, "WHOLE_BYTES", 0)
    monkeypatch.setattr(judged_case, "MOST_BYTES", most)
    product = next(e for e in read(scene.claims().replayed(STEP).entries) if is_product(e.body))
    liar = Faulty(scene, STEP, product.index)
    sides = {"trainer": Terse(scene.claims(), scene.leaves, 4 * most)}
    verdict = decide(scene, STEP, **{**sides, side: liar})
    assert verdict.loser.value == (side if most > 1 << 9 else "none"), verdict.reason


def other_strides(bodies):
    next(body for body in bodies if is_product(body))["results"]["view"][4] = [1, 99]
    return bodies


def fused(bodies):
    return next(body for body in bodies if str(body.get("operator")).startswith("aten._fused_"))


def a_result_of_an_update(bodies):
    fused(bodies)["results"] = 1
    return bodies


def one_more_write_of_an_update(bodies):
    body = fused(bodies)
    body["writes"].append([body["cells"], 400, digest("tensor", bytes(400)), None])
    return bodies


@pytest.mark.parametrize(
    "change", [other_strides, a_result_of_an_update, one_more_write_of_an_update]
)
@pytest.mark.parametrize("side", SIDES)
def test_a_false_layout_of_a_result_needs_no_operands(scene, monkeypatch, change, side):
    monkeypatch.setattr(judged_case, "MOST_BYTES", 64)
    monkeypatch.setattr(parts, "WHOLE_BYTES", 0)
    verdict = decide(scene, STEP, **{side: Liar(scene, STEP, change=change)})
    assert verdict.loser.value == side, verdict.reason


def changed_product(change):
    """The trace up to a product whose entry was changed; to its end, where that goes on."""

    def changed(bodies):
        index = next(i for i, body in enumerate(bodies) if is_product(body))
        change(bodies[index])
        return bodies[: index + 1] if "refused" in bodies[index] else bodies

    return changed


def without_effects(body):
    for name in ("results", "writes", "drawn", "logged"):
        del body[name]
    body["refused"] = True


FORMS = {
    "refused": without_effects,
    "logged": lambda body: body.update(logged=5),
    "content": lambda body: body["writes"][0].__setitem__(3, b"x"),
}


@pytest.mark.parametrize("lie", FORMS)
@pytest.mark.parametrize("side", SIDES)
def test_a_false_form_of_what_came_of_a_call_needs_no_operands(scene, monkeypatch, lie, side):
    monkeypatch.setattr(judged_case, "MOST_BYTES", 64)
    monkeypatch.setattr(parts, "WHOLE_BYTES", 0)
    change = changed_product(FORMS[lie])
    verdict = decide(scene, STEP, **{side: Liar(scene, STEP, change=change)})
    assert verdict.loser.value == side, verdict.reason


def with_content(bodies):
    """A long cell whose entry holds its bytes."""
    row = next(body for body in bodies if is_product(body))["writes"][0]
    assert row[1] > 64
    row[3] = bytes(row[1])
    row[2] = digest("tensor", row[3])
    return bodies


def without_content(bodies):
    """A short cell whose entry does not hold its bytes."""
    names = ("aten.mul.", "aten.add.", "aten.div.")
    some = (body for body in bodies if str(body.get("operator")).startswith(names))
    next(row for body in some for row in body["writes"] if row[3] is not None)[3] = None
    return bodies


@pytest.mark.parametrize("change", [with_content, without_content])
@pytest.mark.parametrize("side", SIDES)
def test_the_size_says_whether_an_entry_holds_the_bytes(scene, monkeypatch, change, side):
    monkeypatch.setattr(judged_case, "MOST_BYTES", 0)
    verdict = decide(scene, STEP, **{side: Liar(scene, STEP, change=change)})
    assert verdict.loser.value == side, verdict.reason


def is_product(body):
    return str(body.get("operator")).startswith("aten.addmm")


class Mute:
    """Claims that open nothing that the judge asks for."""

    def __init__(self, claims, leaves):
        self.leaves, self.leaf = leaves, claims.leaf
        self.trace, self.operator = claims.trace, claims.operator

    def up_to(self, step):
        return self

    def detail(self, step, index, what):
        return None


def false_read(bodies):
    """Another content of a cell that an operator wrote."""
    made = {row[0] for body in bodies if body["kind"] == "operator" for row in body["writes"]}
    for body in reversed(bodies):
        for row in body.get("reads", []):
            if body["kind"] == "operator" and row[0] in made:
                row[3] = digest("tensor", b"another")
                return bodies
    raise AssertionError("no operator reads what another wrote")


def test_a_liar_who_opens_no_entries_is_convicted_by_the_other_party(scene):
    liar = Liar(scene, STEP, change=false_read)
    verdict = decide(scene, STEP, trainer=Mute(liar, liar.leaves))
    assert verdict.loser is Loser.TRAINER, verdict.reason


def test_entries_that_neither_party_can_open_leave_the_dispute_open(scene):
    liar = Liar(scene, STEP, change=false_read)
    mute = Mute(scene.claims(STEP + 1), scene.leaves)
    verdict = decide(scene, STEP, trainer=Mute(liar, liar.leaves), challenger=mute)
    assert verdict.loser is Loser.NONE, verdict.reason
