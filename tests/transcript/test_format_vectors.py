"""vectors/format: every case behaves as its case.json says, and the code still writes the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from make_format_vectors import FOLDER, write_vectors
from run_builder import OTHER_SIGNER, read_files, verify_all

from veritrain import errors
from veritrain.transcript.reader import Transcript
from veritrain.transcript.writer import TranscriptWriter

CASES = sorted(path.parent for path in FOLDER.glob("runs/*/case.json"))
OPERATIONS = ("open", "verify_signatures", "verify_chain", "verify_checkpoint")


def perform(operation: str, run: Path, step: int | None) -> None:
    if operation == "open":
        Transcript.open(run)
    else:
        method = getattr(Transcript.open(run), operation)
        method() if step is None else method(step)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_ends_as_it_must(case: Path) -> None:
    about = json.loads((case / "case.json").read_text())
    if about["fails"] is None:
        transcript = Transcript.open(case / "run")
        transcript.verify_signatures()
        transcript.verify_chain()
        for step in transcript.checkpoint_steps:
            transcript.verify_checkpoint(step)
        return
    fails = about["fails"]
    with pytest.raises(errors.VeritrainError) as caught:
        perform(fails["operation"], case / "run", fails.get("step"))
    assert type(caught.value).__name__ == fails["error"]
    assert fails["message"] in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_no_failing_case_passes_as_a_whole(case: Path) -> None:
    about = json.loads((case / "case.json").read_text())
    if about["fails"] is not None:
        with pytest.raises((errors.TranscriptError, errors.VerificationError)):
            verify_all(case / "run")


def test_earlier_operations_pass_where_a_later_one_must_fail() -> None:
    for case in CASES:
        fails = json.loads((case / "case.json").read_text())["fails"]
        if fails is not None and fails["operation"] == "verify_checkpoint":
            for operation in OPERATIONS[:3]:
                perform(operation, case / "run", None)


def test_there_are_cases_for_every_operation() -> None:
    found = [json.loads((case / "case.json").read_text())["fails"] for case in CASES]
    assert {fails["operation"] for fails in found if fails} == set(OPERATIONS)
    assert None in found


def test_a_run_of_someone_else_is_not_resumed() -> None:
    run = FOLDER / "runs" / "accepted" / "run"
    header = Transcript.open(run).header
    with pytest.raises(errors.UsageError, match="key"):
        TranscriptWriter.resume(run, header, OTHER_SIGNER)


def test_the_vectors_are_what_the_code_writes_today(tmp_path: Path) -> None:
    write_vectors(tmp_path)
    committed = {path: data for path, data in read_files(FOLDER).items() if path != "README.md"}
    assert read_files(tmp_path) == committed
