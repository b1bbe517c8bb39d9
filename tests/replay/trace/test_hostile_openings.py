"""What a party opens is read as hostile: whatever it is, its signer loses, and the judge lives."""

from __future__ import annotations

import inspect
import random
from copy import deepcopy

import pytest
import torch
from torch import nn

import veritrain as vt
from tests.hostile import require_line
from tests.replay.trace import court
from tests.replay.trace.court import Liar, Scene, changed, decide, hold, read
from veritrain.cli import main
from veritrain.encoding import decode, digest, encode
from veritrain.errors import FieldError, UsageError, VeritrainError
from veritrain.protocols.dispute.judge import Ask, Loser, Ruling
from veritrain.protocols.dispute.messages import PARTIES
from veritrain.replay.trace import openings, record_openings, state_openings
from veritrain.replay.trace.entry_bodies import OperatorBody, read_body
from veritrain.replay.trace.openings import FalseOpeningError
from veritrain.replay.trace.tiles import group_chunks, tile
from veritrain.transcript import TensorEntry, state_root

STEP = 2
BAD = {
    "unit": ["array", "<M8[s/0]", [1], b"\0" * 8],
    "text": ["scalar", "<U1", [], b"\xff\xff\xff\x7f"],
    "size": ["array", "|u1", [3 << 30], 3 << 30],
}


class Rows:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.arange(6, dtype=torch.float32) * (index + 1) / 64, index % 3


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def model():
    return nn.Sequential(nn.Linear(6, 512), nn.Linear(512, 256), nn.Linear(256, 3))


def build():
    return vt.Job(
        model=model,
        dataset=Rows(),
        loss=loss,
        optimizer=lambda made: torch.optim.AdamW(made.parameters(), lr=0.1),
        batch_size=8,
        steps=3,
        seed=1,
        checkpoint_every=1,
        sources=[__file__],
    )


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene.of(build(), tmp_path_factory.mktemp("scene") / "run")


class Hostile(Liar):
    """Opens its first record, or its batch, as `bad`."""

    bad: object

    def detail(self, step, index, what):
        found = super().detail(step, index, what)
        if what["open"] == "records":
            found["records"][0] = [self.bad, found["records"][0][1]]
        if what["open"] == "prefix":
            found["batch"] = [self.bad]
        return found


def another_batch(bodies):
    bodies = deepcopy(bodies)
    bodies[0]["batch"] = bodies[-1]["batch"] = digest("x", b"1")
    return bodies


def another_draw(bodies):
    bodies = deepcopy(bodies)
    bodies[3]["draw"] += 1
    return bodies


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("lie", [another_batch, another_draw])
def test_a_trainer_who_opens_a_hostile_value_loses(scene, lie, bad):
    trainer = Hostile(scene, STEP, change=lie)
    trainer.bad = BAD[bad]
    verdict = decide(scene, STEP, trainer=trainer)
    assert verdict.loser is Loser.TRAINER
    assert "what the trainer opened is false" in verdict.reason


class Stub:
    """Asks as the real judge does, and believes."""

    def __init__(self, job):
        pass

    def next(self, case, answered):
        if not answered:
            return Ask(of=PARTIES, what={"open": "records"})
        return Ruling(loser=Loser.TRAINER, reason="stub")


@pytest.mark.parametrize("bad", BAD)
def test_a_bundle_with_a_hostile_value_is_one_clear_line(tmp_path, monkeypatch, capfd, bad):
    job_file = tmp_path / "job.py"
    text = "\n\n".join(map(inspect.getsource, (Rows, loss, model, build)))
    head = "import torch\nfrom torch import nn\nimport veritrain as vt\n"
    own = text.replace("def build", "def job").replace("sources=[__file__],", "")
    job_file.write_text(head + own)
    run = Scene.of(vt.load_job(job_file), tmp_path / "run")
    trainer = Hostile(run, STEP, change=another_batch)
    trainer.bad = BAD[bad]
    with monkeypatch.context() as patch:
        patch.setattr(court, "OperatorJudge", Stub)
        referee = hold(run, STEP, trainer=trainer)
    (tmp_path / "bundle").write_bytes(referee.bundle())
    words = ["verify-verdict", str(tmp_path / "bundle"), "--run", str(tmp_path / "run")]
    words += ["--job", str(job_file), "--referee", run.referee.public_key.hex()]
    capfd.readouterr()
    assert main(words) == 0
    assert "REJECTED: what the trainer opened is false: record " in capfd.readouterr().out


READERS = ["records", "prefix", "state", "entries", "operands", "groups", "tile"]


class Openings:
    """Honest details of the step, and how the judge reads each."""

    def __init__(self, scene):
        job, before = scene.job, scene.leaves[STEP - 1]
        claims = scene.claims()
        entries = read(claims.replayed(STEP).entries)
        bodies = [read_body(entry) for entry in entries]
        self.entries = entries
        at = next(i for i, body in enumerate(bodies) if is_large(body))
        body, written = bodies[at], bodies[at].effects.writes[0]
        chunks = group_chunks(written.size)
        part = tile(body, written.cell, 0, min(written.size, chunks * 1024))
        small = [
            i for i, b in enumerate(bodies) if isinstance(b, OperatorBody) and b.effects.writes
        ][3]
        reads = bodies[small].operands.reads
        bounds = {"cell": written.cell, "start": 0, "stop": min(written.size, chunks * 1024)}
        asked = {
            "records": (0, {}),
            "prefix": (8, {}),
            "state": (8, {"names": ["model/0.weight"]}),
            "entries": (8, {"from": 2}),
            "operands": (small, {"log": False}),
            "groups": (at, {"cell": written.cell, "chunks": chunks}),
            "tile": (at, bounds),
        }
        self.details = {
            name: decode(encode(claims.detail(STEP, i, {"open": name, **more})), where="detail")
            for name, (i, more) in asked.items()
        }
        header = scene.transcript.header
        self.read = {
            "records": lambda d: record_openings.opened_records(job, header, STEP, d),
            "prefix": lambda d: state_openings.Prefix.opened(d, before.state, entries[7], 1),
            "state": lambda d: state_openings.StateBefore.opened(d, before.state),
            "entries": lambda d: openings.opened_entries(d, 2, entries[7]),
            "operands": lambda d: openings.opened_cells(d, reads),
            "groups": lambda d: openings.opened_groups(d, written, chunks),
            "tile": lambda d: (
                openings.opened_part(d, written, part),
                openings.opened_operands(d, body.operands.reads, part),
            ),
        }


def is_large(body):
    return (
        isinstance(body, OperatorBody)
        and bool(body.effects.writes)
        and body.operands.num_bytes > 1 << 18
        and tile(body, body.effects.writes[0].cell, 0, 1) is not None
    )


@pytest.fixture(scope="module")
def opened(scene):
    return Openings(scene)


@pytest.mark.parametrize("name", READERS)
def test_a_changed_detail_is_a_false_opening(opened, name):
    detail, reader = opened.details[name], opened.read[name]
    reader(detail)
    rng = random.Random(name)
    refused = 0
    for _ in range(150):
        other, _, _ = changed(detail, rng)
        try:
            reader(decode(encode(other), where="detail"))
        except FalseOpeningError as error:
            refused += 1
            require_line(error)
    assert refused > 75


def test_a_changed_entry_has_another_form_or_is_read(opened):
    rng = random.Random(5)
    for entry in opened.entries:
        assert encode(read_body(entry).to_value()) == encode(entry.body)
        for _ in range(20):
            body, _, _ = changed(entry.body, rng)
            try:
                other = court.TraceEntry(**{**vars_of(entry), "body": body})
                found = read_body(other)
            except (FieldError, UsageError) as error:  # of the body, or of a map that is no body
                require_line(error)
            else:
                assert encode(found.to_value()) == encode(body)


def vars_of(entry):
    return {name: getattr(entry, name) for name in ("index", "previous", "final", "body")}


@pytest.mark.parametrize(
    "view",
    [
        [0, "float32", 0, [2, 3], [3]],
        [0, "float32", 0, [2, -3], [3, 1]],
        [0, "float32", 0, [1] * 65, [1] * 65],
        [0, "float32", 0, [0, 2**62, 2**62], [1, 1, 1]],
        [0, "float32", 2**62, [0], [1]],
        [0, "float32", 0, [2**63], [0]],
        [0, "float32", 0, [2], [2**63]],
        [0, "float32", True, [2], [1]],
        [0, ["float32"], 0, [2], [1]],
        [0, "complex64", 0, [2], [1]],
        [2**63, "float32", 0, [2], [1]],
    ],
)
def test_an_entry_with_a_view_of_no_tensor_is_malformed(opened, view):
    place, entry = next((i, e) for i, e in enumerate(opened.entries) if e.body.get("writes"))
    for name in ("arguments", "results", "named"):
        wrong = [{"view": view}] if name != "named" else {"out": {"view": view}}
        body = {**entry.body, name: wrong}
        with pytest.raises(FieldError, match=f"field {name}: "):
            read_body(court.TraceEntry(**{**vars_of(entry), "body": body}))
    assert place > 0


@pytest.mark.parametrize("dtype", ["bool", "uint8"])
def test_truth_values_of_a_state_are_0_or_1(dtype):
    """One content may be of a bool and of a uint8 tensor."""
    data = bytes([2]) * 4
    tensors = tuple(
        TensorEntry(name=f"model/{name}", dtype=name, shape=(4,), digest=digest("tensor", data))
        for name in sorted({"uint8", dtype})
    )
    detail = {"state": [t.to_value() for t in tensors], "contents": {t.name: data for t in tensors}}
    state = state_openings.StateBefore.opened(detail, state_root(tensors))
    for tensor in tensors:
        if tensor.dtype == "bool":
            with pytest.raises(VeritrainError, match="neither 0 nor 1"):
                state._tensor(tensor, 0)
        else:
            assert state._tensor(tensor, 0).tolist() == [2] * 4


def test_a_state_whose_content_has_another_size_is_false():
    entry = TensorEntry(name="x", dtype="int64", shape=(2,), digest=digest("tensor", b"short"))
    detail = {"state": [entry.to_value()], "contents": {"x": b"short"}}
    with pytest.raises(FalseOpeningError, match="the content of 'x' is another"):
        state_openings.StateBefore.opened(detail, state_root([entry]))


def test_entries_that_are_not_agreed_are_not_read(opened, monkeypatch):
    """200 entries of a million empty arrays each took 14 GB before their digests were looked at."""
    detail = opened.details["entries"]
    hostile = court.TraceEntry(index=3, previous=bytes(32), final=False, body={"a": [[]] * 1000})
    reads = []
    parse = court.TraceEntry.from_bytes

    def counting(data, *, where):
        reads.append(where)
        return parse(data, where=where)

    monkeypatch.setattr(court.TraceEntry, "from_bytes", counting)
    with pytest.raises(FalseOpeningError, match="entry 7 is not the one of the chain"):
        opened.read["entries"]({"entries": [hostile.to_bytes()] * len(detail["entries"])})
    with pytest.raises(FalseOpeningError, match="expected the entries 2 to 7"):
        opened.read["entries"]({"entries": [hostile.to_bytes()] * 1000})
    assert reads == []
    assert len(opened.read["entries"](detail)) == len(reads) == 6
