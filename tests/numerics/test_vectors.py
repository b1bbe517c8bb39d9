"""vectors/numerics: the product gives the expected bits, and the definitions still write the
same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from product_operations import perform

from spec.cases import CHAPTERS, write_vectors
from spec.vector_files import FOLDER, chapters, decode, encode, read
from veritrain.numerics import resolve

CASES = [(chapter, case) for chapter in chapters() for case in read(chapter)["cases"]]


@pytest.mark.parametrize(
    ("chapter", "case"),
    CASES,
    ids=[f"{chapter}: {case['operation']}, {case['name']}" for chapter, case in CASES],
)
def test_the_product_gives_the_expected_bits(chapter: str, case: dict[str, Any]) -> None:
    numerics = read(chapter)["numerics"]
    inputs = {name: decode(tensor) for name, tensor in case["inputs"].items()}
    outputs = perform(case["operation"], inputs, case["arguments"], numerics)
    assert {name: encode(y) for name, y in outputs.items()} == case["outputs"]


def test_the_vectors_are_what_the_definitions_write_today(tmp_path: Path) -> None:
    write_vectors(tmp_path)
    assert chapters() == sorted(CHAPTERS)
    for chapter in CHAPTERS:
        name = f"{chapter}.json"
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes(), name


def test_the_vectors_are_of_the_version_that_the_product_has() -> None:
    for chapter in chapters():
        vectors = read(chapter)
        assert vectors["version"] == resolve(vectors["numerics"]).version


def test_inputs_are_what_their_digests_say() -> None:
    found = [x for _, case in CASES for x in case["inputs"].values() if x and "stream" in x]
    assert found
    for tensor in found:
        array = decode(tensor)
        assert array is not None
        assert np.isfinite(array).all()
        assert encode(array) == {key: tensor[key] for key in ("shape", "blake3")}


def test_grades_differ_where_their_widths_do() -> None:
    """The same values in both files would be no test of the narrow grade."""
    wide, narrow = (
        {case["name"]: case["outputs"] for case in read(name)["cases"] if case["operation"] == "mm"}
        for name in ("contraction", "contraction14")
    )
    assert wide.keys() == narrow.keys()
    assert wide["K = 131072"] != narrow["K = 131072"]
    assert wide["K = 1"] != narrow["K = 1"]
