"""Under other releases than the run's, no judge decides."""

from __future__ import annotations

from dataclasses import replace
from importlib import metadata
from importlib.metadata import version

import pytest

from tests.protocols.dispute.toy import header
from veritrain.errors import InconclusiveError, UsageError
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Loser, Ruling
from veritrain.protocols.dispute.versions import SameVersions, require_versions

TORCH = version("torch").partition("+")[0]
RULING = Ruling(loser=Loser.TRAINER, reason="so")


class Ready:
    def next(self, case: Case, answered: tuple[Answered, ...]) -> Ruling | Ask:
        return RULING


def judged(environment: dict[str, str]) -> Ruling | Ask:
    case = object.__new__(Case)
    object.__setattr__(case, "header", replace(header(), environment=environment))
    return SameVersions(Ready()).next(case, ())  # pyright: ignore


@pytest.mark.parametrize(
    "environment",
    [
        {"torch": TORCH},
        {"torch": f"{TORCH}+cu999"},
        {"torch": TORCH, "pytest": version("pytest")},
        {
            "torch": TORCH,
            "PyTest": version("pytest"),
            "typing.extensions": version("typing_extensions"),
        },
        {"torch": TORCH, "a-package-of-the-data-set": "3", "../..": "1"},
        {"torch": TORCH, "python": "2.7", "numpy": "0", "numba": "0", "veritrain": "0"},
    ],
)
def test_the_same_releases(environment: dict[str, str]) -> None:
    assert judged(environment) is RULING
    require_versions(environment)


@pytest.mark.parametrize(
    ("environment", "names"),
    [
        ({"torch": "9.9"}, f"torch: expected '9.9', got '{TORCH}'"),
        ({"torch": f"{TORCH}.1"}, "torch: expected"),
        ({}, f"torch: expected nothing, got '{TORCH}'"),
        ({"torch": TORCH, "pytest": "0.1"}, "pytest: expected '0.1'"),
    ],
)
def test_other_releases_are_named(environment: dict[str, str], names: str) -> None:
    with pytest.raises(InconclusiveError) as caught:
        judged(environment)
    assert names in str(caught.value)
    with pytest.raises(UsageError) as refused:
        require_versions(environment)
    assert str(refused.value) == str(caught.value)


def test_a_header_of_many_names_is_no_search_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """95,000 names fit into a header, and looking for each took half a minute a question."""
    searched: list[object] = []
    search = metadata.distributions
    monkeypatch.setattr(metadata, "version", lambda name: pytest.fail(f"searched for {name}"))
    monkeypatch.setattr(metadata, "distributions", lambda: searched.append(1) or search())
    assert judged({"torch": TORCH, **{f"p{index}": "1" for index in range(95_000)}}) is RULING
    assert len(searched) == 1
