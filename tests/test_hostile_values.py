"""Every parser of bytes that someone else wrote: a value of the one form, or the error that it
names."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import jobs
from tests.hostile import MIB, outcomes, require_line
from tests.test_encoding import values as any_values
from veritrain.cli import calibrate as calibrate_command
from veritrain.encoding import decode, encode
from veritrain.errors import FieldError, TranscriptError, UsageError, VerificationError
from veritrain.job.data import Batches
from veritrain.job.state import HYPER, SCHEDULER, _plain, _unplain, capture, require_fit, restore
from veritrain.job.step import Program, run_step
from veritrain.net.http_client import HttpAnswer
from veritrain.numerics.logged.log import LogReader
from veritrain.parties.envelope import SignedEnvelope
from veritrain.protocols.dispute.dispute_evidence import Bundle, DisputeEvidence
from veritrain.protocols.dispute.messages import Message, Question
from veritrain.protocols.dispute.verdict import DisputeVerdict, unseal
from veritrain.replay.trace import calls
from veritrain.replay.trace.cells import CellView
from veritrain.replay.trace.entry import TraceEntry
from veritrain.service import challenger, question_forwarder
from veritrain.training import calibration as calibrate
from veritrain.transcript import (
    Checkpoint,
    Head,
    Header,
    Leaf,
    SignedHead,
    http_store,
    state_entries,
)
from veritrain.transcript.records import decode_segment
from veritrain.transcript.slices import Slices, SliceTree


def keyed(inner):
    pairs = st.lists(st.lists(inner, min_size=2, max_size=2), max_size=3)
    tensor = st.tuples(
        st.sampled_from(["float32", "bool", "int64", "float8_e5m2", "complex64", "O"]) | any_values,
        st.lists(st.integers(-1, 3) | st.integers(2**31, 2**64 - 1), max_size=3) | any_values,
        st.binary(max_size=24) | any_values,
    ).map(list)
    return (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["map", "counter"]), pairs, min_size=1, max_size=2)
        | st.fixed_dictionaries({"tuple": st.lists(inner, max_size=3)})
        | st.fixed_dictionaries({"tensor": tensor})
    )


plain_values = st.recursive(any_values, keyed, max_leaves=10)


@settings(deadline=None, max_examples=800)
@given(plain_values)
def test_a_plain_value_has_the_one_form_or_is_refused(value):
    try:
        found = _unplain(value, "here")
    except TranscriptError as error:
        require_line(error)
        return
    again = _plain(found, "here")
    assert encode(_plain(_unplain(again, "here"), "here")) == encode(again)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"map": [[[1], 2]]}, "keys that can be hashed"),
        ({"map": [[1, 2], [1, 3]]}, "a key twice"),
        ({"map": [[1, 2], [True, 3]]}, "a key twice"),
        ({"counter": [["a", 2], ["a", 3]]}, "a key twice"),
        ({"tensor": ["float32", [2**62, 0, 2**62], b""]}, "too large"),
        ({"tensor": ["bool", [1], b"\2"]}, "neither 0 nor 1"),
        ({"tensor": ["bool", [True], b"\1"]}, "shape"),
        ({"tensor": ["float32", [3 << 30], 3 << 30]}, "not dtype, shape and bytes"),
    ],
)  # fmt: skip
def test_a_hostile_plain_value_is_named(value, problem):
    with pytest.raises(TranscriptError, match=problem):
        _unplain(value, "here")


def test_keys_with_one_hash_are_refused():
    value = {"map": [[(2**61 - 1) * i, i] for i in range(-4, 4)]}
    assert len(_unplain(value, "here")) == 8
    # floats that are whole have the hash of the integer: powers of two return after 61
    many = [[float(2**61) ** i * 2.0, None] for i in range(16)]
    assert len({hash(key) for key, _ in many}) == 1
    pairs = [[{"tuple": [key, number]}, None] for key, _ in many for number in range(2)]
    assert len(_unplain({"map": pairs}, "here")) == 32
    crowd = [
        [{"tuple": [2.0**a, 2.0**b]}, None] for a in range(1, 1000, 61) for b in range(2, 1000, 61)
    ]
    assert len({hash((2.0**a, 2.0**b)) for a in (1, 62) for b in (2, 63)}) == 1
    with pytest.raises(TranscriptError, match="keys share one hash"):
        _unplain({"map": crowd}, "here")


@pytest.fixture(scope="module")
def stepped():
    job = jobs.make()
    program = Program.build(job)
    run_step(program, 1, Batches(job)[1])
    return job, {name: tensor.clone() for name, tensor in capture(program).items()}


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_changed_text_of_a_state_is_refused_or_restored(data, stepped):
    job, state = stepped
    name = data.draw(st.sampled_from([HYPER, SCHEDULER]))
    value = decode(bytes(state[name].numpy()), where="own")
    other = changed_anywhere(value, data)
    encoded = torch.frombuffer(bytearray(encode(other)), dtype=torch.uint8)
    program = Program.build(job)
    try:
        restore(program, {**state, name: encoded})
    except TranscriptError as error:
        require_line(error)


def changed_anywhere(value, data):
    """The value with one part of it replaced."""
    if isinstance(value, list) and value and data.draw(st.booleans()):
        place = data.draw(st.integers(0, len(value) - 1))
        return [*value[:place], changed_anywhere(value[place], data), *value[place + 1 :]]
    if isinstance(value, dict) and value and data.draw(st.booleans()):
        key = data.draw(st.sampled_from(sorted(value)))
        return {**value, key: changed_anywhere(value[key], data)}
    return data.draw(plain_values)


def test_a_state_whose_moments_are_short_is_refused_however_the_optimiser_is_called(stepped):
    job, state = stepped

    class Mine(torch.optim.AdamW):
        pass

    mine = replace(job, optimizer=lambda model: Mine(list(jobs.groups(model)), lr=0.01))
    for other in (job, mine):
        for name in ("exp_avg", "exp_avg_sq", "step"):
            short = {**state, f"optimizer/first.weight/{name}": torch.zeros(3)}
            with pytest.raises(TranscriptError, match=f"first.weight/{name}"):
                restore(Program.build(other), short)
            with pytest.raises(TranscriptError, match=f"first.weight/{name}"):
                require_fit(Program.build(other), state_entries(short))


@pytest.mark.parametrize("short", [1, 2, 3])
def test_the_rule_of_fused_updates_refuses_tensors_of_other_shapes(short):
    program = Program.build(jobs.make())
    tensors = [torch.zeros(4), torch.zeros(4), torch.zeros(4), torch.zeros(4)]
    tensors[short] = torch.zeros(3)
    lists = [[tensor] for tensor in tensors]
    with (
        program.profile.active(seed=1, purpose="step", step=1),
        pytest.raises(ValueError, match="expected tensors of one shape"),
    ):
        torch._fused_adamw_(
            *lists, [], [torch.ones(())], lr=0.1, beta1=0.9, beta2=0.9, weight_decay=0.0, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip


RECORDS = [
    Header,
    Leaf,
    Head,
    SignedHead,
    Checkpoint,
    TraceEntry,
    Message,
    SignedEnvelope,
    DisputeEvidence,
    Bundle,
    Slices,
]
GOOD = [
    Leaf(step=0, state=bytes(32), batch=None, loss=None, rounding=None, previous=bytes(32)),
    Checkpoint(step=2, tensors=state_entries({"a": torch.zeros(2), "b": torch.ones(3)}),
        packs=(2, 1)),
    SliceTree("tensor", bytes(5000)).open([(0, 10), (3000, 3001)]),
    TraceEntry(index=0, previous=bytes(32), final=False, body={"kind": "inputs"}),
    DisputeEvidence(referee=bytes(32), questions=(bytes(64),), events=(b"message", 1)),
]  # fmt: skip


def parsed(parse, value, errors):
    """What `parse` makes of a value; None where it refuses it as it says."""
    try:
        return parse(value)
    except errors as error:
        require_line(error)
        return None


@settings(deadline=None, max_examples=600)
@given(st.sampled_from(RECORDS), any_values | st.binary(max_size=60))
def test_any_bytes_are_no_record(record, value):
    data = value if isinstance(value, bytes) else encode(value)
    assert parsed(lambda d: record.from_bytes(d, where="here"), data, TranscriptError) is None


@settings(deadline=None, max_examples=600)
@given(st.sampled_from(GOOD), st.data())
def test_a_changed_record_is_of_the_one_form_or_refused(record, data):
    value = changed_anywhere(decode(record.to_bytes(), where="own"), data)
    other = encode(value)
    found = parsed(lambda d: type(record).from_bytes(d, where="here"), other, TranscriptError)
    assert found is None or found.to_bytes() == other
    segment = encode([value])
    parsed(lambda d: decode_segment(d, where="here"), segment, TranscriptError)


@settings(deadline=None, max_examples=400)
@given(any_values | st.lists(any_values, min_size=5, max_size=5))
def test_any_value_is_no_view_and_no_call(value):
    parsed(CellView.from_value, value, FieldError)
    found = parsed(calls.read_argument, value, FieldError)
    assert found is None or encode(calls.argument_value(found)) == encode(value)
    parsed(Question.from_value, value, FieldError)


@settings(deadline=None, max_examples=500)
@given(st.binary(max_size=80), st.integers(1, 5000))
def test_any_bytes_are_a_log_or_no_log(data, size):
    reader = LogReader(data)
    found = parsed(reader.next, size, TranscriptError)
    if found is not None:
        assert len(found.places) == len(found.up) <= size
        assert all(0 <= place < size for place in found.places)


VERDICT = {
    "payload": "e30=",
    "payloadType": "application/vnd.in-toto+json",
    "signatures": [{"keyid": "", "sig": ""}],
}
DEEP = "[" * 100_000
BAD_JSON = [
    b"", b"\xff", b"{", b"null", b"[]", b"0", DEEP.encode(), DEEP.encode() + b"]" * 100_000,
    b'{"a":' * 50_000, b"9" * 5000, b'{"a": ' + b"9" * 5000 + b"}", b'{"a": 1e999}', b'{"a": NaN}',
    b'{"a": -Infinity}',
    b'{"payload": 1, "signatures": {}}', b'{"payload": "e30=", "signatures": [1]}',
    b'{"a": 1, "a": 2}',
    b'{"head": 1e999, "files": [], "next": null}', b'{"head": 1, "files": {}, "next": null}',
    b'{"head": 1, "files": [{"path": [], "bytes": 1}], "next": null}',
    b'{"head": 1, "files": [{"path": "a", "bytes": ' + b"9" * 4000 + b'}], "next": "x"}',
    b'{"head": 1, "files": [{"path": "a/b", "bytes": true}], "next": null}',
    b'{"answer": 5}', b'{"answer": ["/answers/"]}', b'{"key": 5, "run": null}',
    json.dumps(VERDICT).encode(),
]  # fmt: skip


@pytest.mark.parametrize("data", BAD_JSON, ids=lambda data: f"{data[:30]!r}-{len(data)}")
def test_bad_json_is_refused_by_every_reader_of_it(data):
    errors = (TranscriptError, VerificationError)
    assert parsed(lambda d: unseal(d, bytes(32)), data, errors) is None
    assert parsed(DisputeVerdict.from_json, data, errors) is None
    assert parsed(lambda d: http_store._parse_page(d, ""), data, errors) is None
    answer = HttpAnswer(status=200, body=data)
    for name, form in (("answer", question_forwarder._PLACE), ("key", challenger._HEX)):
        assert parsed(lambda name: answer.text(name, form), name, errors) is None  # noqa: B023
    text = data.decode(errors="replace")
    found = parsed(lambda t: calibrate_command._map(t, "here"), text, UsageError)
    assert found is None or not calibrate._is_result(found)


GAP = {"samples": 1, "operator": "aten.mm", "largest": 1.0, "reach": 0.5}


@pytest.mark.parametrize(
    "change",
    [{"samples": -1}, {"samples": 2**63}, {"samples": True}, {"operator": "x" * 3000},
        {"operator": 1},
     {"largest": 10**400}, {"largest": -1}, {"largest": float("nan")}, {"largest": float("inf")},
     {"reach": "1"}],
)  # fmt: skip
def test_a_result_of_another_computer_that_cannot_be_used_is_refused(change):
    good = {"gaps": {"sum": GAP}, "disagreements": ["x"]}
    assert calibrate._is_result(good)
    assert not calibrate._is_result({"gaps": {"sum": {**GAP, **change}}, "disagreements": []})
    assert not calibrate._is_result({**good, "disagreements": ["x" * 3000]})


def test_hostile_records_take_memory_in_proportion():
    """An empty array takes a byte here and a hundred there: within the limits that is all there is
    to gain."""
    nests = [[] for _ in range(200_000)]
    setup = """
    from veritrain.encoding import encode
    from veritrain.transcript import Checkpoint
    from veritrain.transcript.slices import Slices
    def parse(value):
        for record in (Checkpoint, Slices):
            record.from_bytes(encode(value), where="here")
    """
    hostile = [
        {"type": "checkpoint", "step": 0, "tensors": nests, "packs": []},
        {"type": "slices", "total": 2**63 - 1, "runs": nests, "data": b"", "proof": []},
        {"type": "slices", "total": 2**63 - 1, "runs": [[0, 2**53]], "data": b"", "proof": []},
    ]
    assert outcomes(setup, hostile, room=256 * MIB) == ["TranscriptError"] * 3


def test_counters_come_back():
    assert _unplain(_plain(Counter("abca"), "here"), "here") == Counter("abca")
