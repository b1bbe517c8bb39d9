"""What a challenger looks at before it challenges a run."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.replay.trace.court import Scene
from tests.replay.trace.test_judge import Other, Plain, build
from veritrain.errors import InconclusiveError, UsageError, VerificationError
from veritrain.protocols.dispute.find_difference import require_agreed
from veritrain.transcript.records import Header


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return Scene.of(build(), tmp_path_factory.mktemp("scene") / "run")


class Claiming:
    """A run whose header has other claims."""

    def __init__(self, scene, **claims):
        self._transcript = scene.transcript
        self.header: Header = replace(scene.transcript.header, **claims)

    def __getattr__(self, name):
        return getattr(self._transcript, name)


class Shorter(Plain):
    def __init__(self):
        super().__init__(count=39)


def test_the_same_job_and_data_are_agreed(scene):
    require_agreed(scene.job, scene.transcript)


@pytest.mark.parametrize("data", [Other, Shorter])
def test_a_run_of_another_data_set_needs_no_dispute(scene, data):
    job = replace(scene.job, dataset=data())
    with pytest.raises(VerificationError, match="of another data set: reject it, no dispute"):
        require_agreed(job, scene.transcript)
    with pytest.raises(VerificationError, match="of another data set"):
        require_agreed(scene.job, Claiming(scene, dataset_count=41))


def test_another_environment_may_be_why(scene):
    job = replace(scene.job, dataset=Other())
    with pytest.raises(InconclusiveError, match=r"the run was recorded with torch 1\.0 "):
        require_agreed(job, Claiming(scene, environment={"torch": "1.0"}))


def test_other_numerics_than_the_job_names_need_no_dispute(scene):
    with pytest.raises(VerificationError, match="no dispute is needed: numerics: expected exact"):
        require_agreed(scene.job, Claiming(scene, numerics="logged"))
    with pytest.raises(InconclusiveError, match="version 99"):
        require_agreed(scene.job, Claiming(scene, numerics_version=99))


def test_native_numerics_are_not_disputed(scene):
    with pytest.raises(UsageError, match="native"):
        require_agreed(replace(scene.job, numerics="native"), scene.transcript)
