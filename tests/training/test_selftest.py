"""The known answers that are shipped: they are the vectors, they pass here, and a wrong bit is
told."""

from __future__ import annotations

import json

import pytest
import torch
from make_selftest import FILE, chosen

from veritrain.training import selftest


def test_the_shipped_cases_are_the_vectors():
    assert json.loads(FILE.read_text()) == chosen()


@pytest.mark.parametrize("family", selftest.families())
def test_this_machine_passes(family):
    answers = selftest.run(family)
    assert answers
    assert [answer for answer in answers if answer.error is not None] == []


def test_a_wrong_bit_is_told_by_name(monkeypatch):
    def wrong(a: torch.Tensor, b: torch.Tensor) -> dict[str, torch.Tensor]:
        y = torch.mm(a, b)
        y.view(torch.int32).view(-1)[-1] ^= 1
        return {"y": y}

    monkeypatch.setitem(selftest.OPERATIONS, "mm", wrong)
    answers = selftest.run("products")
    failed = [answer for answer in answers if answer.error is not None]
    assert {answer.case.partition(":")[0] for answer in failed} == {"mm"}
    assert all("expected" in str(answer.error) for answer in failed)
    assert len(failed) < len(answers)


def test_an_operation_that_fails_is_an_answer(monkeypatch):
    def broken(**parts: object) -> dict[str, torch.Tensor]:
        raise OSError("no such library")

    monkeypatch.setitem(selftest.OPERATIONS, "glu", broken)
    errors = [answer.error for answer in selftest.run("pointwise") if answer.error]
    assert errors == ["OSError: no such library"]
