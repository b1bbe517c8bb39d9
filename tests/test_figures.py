"""The README's figures are those of the committed results."""

from __future__ import annotations

from pathlib import Path

from benchmarks import table

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_readme_holds_the_table_of_the_results():
    assert table.table() in README, "run python -m benchmarks.table and copy what it prints"


def test_the_readme_says_where_they_were_measured():
    assert f"Measured on {table.machine()}." in README


def test_the_readme_holds_the_figures_of_full_size_models():
    assert table.large_table() in README, "run python -m benchmarks.table and copy what it prints"
    assert f"Full-size figures are of {table.machine('large')}." in README


def test_the_readme_holds_the_figures_of_logged_numerics():
    assert table.logged_table() in README, "run python -m benchmarks.table and copy what it prints"
    assert f"Figures of logged numerics are of {table.machine('logged')}." in README


def test_the_readme_holds_the_figures_of_disputes():
    assert table.dispute_table() in README, "run python -m benchmarks.table and copy what it prints"
    assert f"Disputes were measured on {table.machine('dispute')}" in README


def test_the_readme_holds_the_figures_of_the_service():
    assert table.service_table() in README, "run python -m benchmarks.table and copy what it prints"
    assert f"the service on {table.machine('service')}." in README
