"""Requests made from the description of the service, valid and not, against a real server."""

from __future__ import annotations

import json
from contextlib import suppress

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    negative_data_rejection,  # does not know that 413 is a refusal
    positive_data_acceptance,
)

from tests.service.running import running

EXAMPLES = settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture(scope="module")
def parties():
    limits = {"requests_per_second": 0, "poll_seconds": 1, "question_bytes": 1 << 12}
    with running(limits=limits) as one:
        yield one


def check(case):
    """Every answer is one that the description has, and an error says nothing of the request."""
    response = case.call(timeout=20)
    excluded = {
        412: positive_data_acceptance,
        413: negative_data_rejection,
        416: positive_data_acceptance,
    }
    case.validate_response(
        response,
        excluded_checks=[
            check for status, check in excluded.items() if status == response.status_code
        ],
    )
    if response.status_code >= 400 and response.content:
        assert set(json.loads(response.content)) == {"error"}
        assert b"Traceback" not in response.content


def check_all(url):
    """Requests for every operation of the description: how many operations there are, and of how
    many a request can be invalid."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    invalid = 0
    for operation in operations:
        EXAMPLES(given(operation.as_strategy(generation_mode=GenerationMode.POSITIVE))(check))()
        with suppress(Unsatisfiable):
            EXAMPLES(given(operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))(check))()
            invalid += 1
    return len(operations), invalid


def test_the_run(service):
    assert check_all(service.url) == (18, 12)


def test_the_parties(parties):
    assert check_all(parties.url) == (9, 7)
