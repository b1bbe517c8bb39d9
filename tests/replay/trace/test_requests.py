"""A referee's question may ask for anything: a party opens what there is, and refuses the rest by
`FieldError`."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile import require_line
from tests.replay.trace.court import Scene, read
from tests.replay.trace.test_judge import STEP, build
from tests.test_encoding import values as any_values
from veritrain.encoding import encode
from veritrain.errors import FieldError
from veritrain.replay.trace.entry_bodies import OperatorBody, read_body
from veritrain.replay.trace.requests import read_request

GOOD = [
    {"open": "records"},
    {"open": "prefix"},
    {"open": "state", "names": ["model/first.weight"]},
    {"open": "entries", "from": 2},
    {"open": "log"},
    {"open": "operands", "log": True},
    {"open": "groups", "cell": 3, "chunks": 4},
    {"open": "tile", "cell": 3, "start": 0, "stop": 1024},
]


@pytest.mark.parametrize("value", GOOD, ids=lambda value: value["open"])
def test_a_request_comes_back(value):
    assert read_request(value).to_value() == value


parts = st.sampled_from([value for good in GOOD for value in good.values()]) | any_values
names = st.sampled_from(sorted({name for good in GOOD for name in good}))


@settings(deadline=None, max_examples=400)
@given(any_values | st.dictionaries(names, parts, max_size=5))
def test_any_value_is_a_request_or_refused(value):
    try:
        found = read_request(value)
    except FieldError as error:
        require_line(error)
    else:
        assert encode(found.to_value()) == encode(value)


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene.of(build(), tmp_path_factory.mktemp("scene") / "run")


@pytest.fixture(scope="module")
def claims(scene):
    return scene.claims()


@pytest.fixture(scope="module")
def written(claims):
    """An operator's entry that wrote a cell: index, cell, bytes."""
    bodies = [read_body(entry) for entry in read(claims.replayed(STEP).entries)]
    index, body = next(
        (i, body)
        for i, body in enumerate(bodies)
        if isinstance(body, OperatorBody) and body.effects.writes
    )
    return index, body.effects.writes[0].cell, body.effects.writes[0].size


@pytest.mark.parametrize(
    "change",
    [
        {"open": "groups", "cell": 10**6, "chunks": 1},
        {"open": "groups", "chunks": 3},
        {"open": "groups", "chunks": 0},
        {"open": "tile", "cell": 10**6, "start": 0, "stop": 1},
        {"open": "tile", "start": 0, "stop": 2**62},
        {"open": "tile", "start": 1, "stop": 1},
        {"open": "tile", "start": -1, "stop": 1},
        {"open": "state"},
        {"open": "state", "names": [1]},
        {"open": "entries"},
        {"open": "operands"},
        {"open": "operands", "log": 1},
        {"open": "everything"},
        {"open": ["records"]},
        {},
    ],
    ids=str,
)
def test_what_an_entry_has_not_is_refused(claims, written, change):
    index, cell, _ = written
    own = {"cell": cell} if change.get("open") in ("groups", "tile") else {}
    with pytest.raises(FieldError):
        claims.detail(STEP, index, {**own, **change})


@pytest.mark.parametrize(
    "open_", [{"open": "groups", "chunks": 1}, {"open": "tile", "start": 0, "stop": 1}]
)
def test_entries_that_write_nothing_have_no_parts(claims, open_):
    last = len(claims.replayed(STEP).entries) - 1
    for index in (0, last, last + 1, 10**6):
        with pytest.raises(FieldError):
            claims.detail(STEP, index, {**open_, "cell": 0})


def test_steps_leaves_and_entries_that_are_not_there_are_refused(scene, claims):
    beyond = len(scene.leaves)
    size = len(claims.replayed(STEP).entries)
    for ask in (
        lambda: claims.leaf(beyond),
        lambda: claims.leaf(10**12 - 1),
        lambda: claims.trace(beyond),
        lambda: claims.trace(10**12 - 1),
        lambda: claims.operator(STEP, size),
        lambda: claims.operator(10**12 - 1, 0),
        lambda: claims.detail(beyond, 0, {"open": "records"}),
        lambda: claims.detail(0, 0, {"open": "records"}),
        lambda: claims.detail(0, 1, {"open": "state", "names": []}),
    ):
        with pytest.raises(FieldError):
            ask()
