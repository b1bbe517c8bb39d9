"""The figures of README.md and docs/benchmarks.md are those of the committed results."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import table

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "benchmarks.md").read_text()
WHERE = {
    "step": "Measured on {}.",
    "large": "Full-size figures are of {}.",
    "logged": "Figures of logged numerics are of {}.",
    "dispute": "Disputes were measured on {}.",
    "service": "The service was measured on {}.",
}


def one_line(text: str) -> str:
    """The text without its line breaks."""
    return " ".join(text.split())


@pytest.mark.parametrize("figure", table.headlines())
def test_the_readme_holds_the_headlines_of_the_results(figure):
    readme = one_line((ROOT / "README.md").read_text())
    assert figure in readme, "run python -m benchmarks.table and copy what it prints"


@pytest.mark.parametrize("name", table.TABLES)
def test_the_page_holds_the_table_of_the_results(name):
    assert table.TABLES[name]() in PAGE, "run python -m benchmarks.table and copy what it prints"


@pytest.mark.parametrize("name", table.TABLES)
def test_the_page_says_where_the_results_were_measured(name):
    assert WHERE[name].format(table.machine(name)) in one_line(PAGE)
