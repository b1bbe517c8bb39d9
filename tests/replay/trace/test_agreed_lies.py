"""Two liars who agree on something false: the referee decides nothing, and says why instead of
failing."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest

from tests.replay.trace.court import Liar, Scene, decide
from tests.replay.trace.test_judge import STEP, build
from veritrain.encoding import digest
from veritrain.protocols.dispute.judge import Loser


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene.of(build(), tmp_path_factory.mktemp("scene") / "run")


def first(bodies, wanted):
    return next(i for i, body in enumerate(bodies) if i > 1 and wanted(body))


def verdict_on(scene, agree, differ):
    """The verdict where both parties made the change `agree`, and each another change at the index
    that it names."""

    def lie(number):
        def change(bodies):
            bodies = deepcopy(bodies)
            index = agree(bodies)
            differ(bodies[index], number)
            return bodies

        leaf = replace(scene.leaves[STEP], state=digest("tensor", bytes([number])))
        return Liar(scene, STEP, change=change, leaf=leaf)

    return decide(scene, STEP, lie(1), lie(2))


def other_log(body, number):
    body["log"] = body["logged"] = number


def other_read(body, number):
    body["reads"][0][3] = digest("tensor", bytes([number]))


def malformed_before(bodies):
    index = first(bodies, lambda body: body["kind"] == "operator")
    bodies[index - 1] = {"kind": "operator", "reads": 1}
    return index


def no_peaks_before(bodies):
    index = first(bodies, lambda body: body["kind"] == "outcome")
    bodies[index - 1]["peaks"] = []
    return index


def of_no_batch(bodies):
    return met_as(bodies, ["batch", 99])


def of_no_state(bodies):
    return met_as(bodies, ["state", "model/nothing"])


def met_as(bodies, origin):
    index = first(bodies, lambda body: body.get("met"))
    bodies[index]["met"] = [[row[0], row[1], origin] for row in bodies[index]["reads"][:1]]
    return index


def of_no_operator(bodies):
    index = first(bodies, lambda body: body["kind"] == "operator" and body["writes"])
    bodies[index]["operator"] = "aten.nothing.default"
    return index


def of_a_view_beyond_its_cell(bodies):
    index = first(bodies, lambda body: body.get("operator") == "aten.relu.default")
    bodies[index]["arguments"][0]["view"][2] = 10**6
    return index


def other_result(body, number):
    body["drawn"] = number


def other_write(body, number):
    body["writes"][0][2] = digest("tensor", bytes([number]))


def other_state(body, number):
    body["state"] = digest("tensor", bytes([number]))


@pytest.mark.parametrize(
    ("agree", "differ", "reason"),
    [
        (malformed_before, other_log, "which is agreed, is malformed"),
        (no_peaks_before, other_state, "tree of another form"),
        (of_no_batch, other_read, "the batch has no tensor 99"),
        (of_no_state, other_read, "no tensor 'model/nothing'"),
        (of_no_operator, other_result, "no operator: 'aten.nothing.default'"),
        (of_a_view_beyond_its_cell, other_write, "a view beyond its cell"),
    ],
)
def test_what_both_agree_on_falsely_is_named(scene, agree, differ, reason):
    verdict = verdict_on(scene, agree, differ)
    assert verdict.loser is Loser.NONE
    assert reason in verdict.reason
