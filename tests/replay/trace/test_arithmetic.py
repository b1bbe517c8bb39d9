"""The settings in a header are whoever's wrote it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.replay.trace.court import Scene
from tests.replay.trace.test_judge import build
from veritrain.errors import InconclusiveError
from veritrain.replay.trace.arithmetic import Arithmetic


@pytest.fixture(scope="module")
def header(tmp_path_factory):
    return Scene.of(build(), tmp_path_factory.mktemp("scene") / "run").transcript.header


def test_a_headers_settings_are_the_jobs(header):
    assert Arithmetic.from_header(header) == Arithmetic.of(build())


@pytest.mark.parametrize(
    "changes",
    [
        {"numerics": "exactly"}, {"numerics": "exact14"}, {"numerics": 1}, {"numerics": None},
        {"seed": 1}, {"seed": bytes(31)}, {"seed": None}, {"thresholds": None}, {"thresholds": []},
        {"thresholds": {"gemm": -1.0}}, {"thresholds": {"gemm": float("inf")}},
        {"thresholds": {"": 1.0}},
        {"thresholds": {"gemm": "1"}}, {"thresholds": {"gemm": True}},
    ],
)  # fmt: skip
def test_settings_that_no_job_has_are_refused(header, changes):
    config = {**header.job["config"], **changes}
    with pytest.raises(InconclusiveError, match="settings in the header"):
        Arithmetic.from_header(replace(header, job={**header.job, "config": config}))


@pytest.mark.parametrize("job", [{}, {"config": None}, {"config": []}])
def test_a_header_without_settings_is_refused(header, job):
    with pytest.raises(InconclusiveError, match="settings in the header"):
        Arithmetic.from_header(replace(header, job=job))


def test_another_version_of_the_numerics_is_refused(header):
    with pytest.raises(InconclusiveError, match="version"):
        Arithmetic.from_header(replace(header, numerics_version=header.numerics_version + 1))
