"""What a run carries beside its commitments is the header's, or it is refused; and it is
optional."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from run_builder import (
    OTHER_SIGNER,
    RECORDS,
    SIGNER,
    SOURCES,
    carried,
    carrying_header,
    continue_run,
    make_carrying_run,
    read_files,
    verify_all,
    write_files,
)

from veritrain.encoding import Value, decode, encode
from veritrain.errors import TranscriptError, UsageError, VerificationError
from veritrain.job.data import canonical
from veritrain.transcript import files
from veritrain.transcript.carried import Records, Sources
from veritrain.transcript.forms import MAX_FORM_CHARS, form_of
from veritrain.transcript.limits import LIMITS
from veritrain.transcript.reader import Transcript
from veritrain.transcript.store import LocalStore
from veritrain.transcript.writer import TranscriptWriter

HEADER = carrying_header()
RUN = make_carrying_run()

values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=3) | st.binary(max_size=70),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=20,
)


def test_a_run_gives_what_it_carries(tmp_path: Path) -> None:
    transcript = verify_all(write_files(tmp_path, RUN))
    assert transcript.sources() == SOURCES
    records = transcript.records()
    assert records is not None
    found = [(records.digest_of(i), records.form(i)) for i in range(records.count)]
    assert found == RECORDS
    assert records.forms == ["(tensor float32 [2], int)", "draws random numbers: int"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"job.py": b"RATE = 0.2\n"},
            r"sources: 'job.py': expected [0-9a-f]{64}, got [0-9a-f]{64}",
        ),
        ({"more.py": b""}, "sources: 'more.py' is not a source file of the header"),
        ({"job.py": None}, "sources: 'job.py' is missing"),
    ],
)
def test_other_sources_are_refused(
    change: dict[str, bytes | None], message: str, tmp_path: Path
) -> None:
    given = {name: data for name, data in {**SOURCES, **change}.items() if data is not None}
    with pytest.raises(VerificationError, match=f"^{message}$"):
        Sources(files=given).check(HEADER)
    data = Sources(files=given).to_bytes()
    with pytest.raises(VerificationError, match=f"^{message}$"):
        verify_all(write_files(tmp_path, {**RUN, files.SOURCES: data}))


@pytest.mark.parametrize("sources", [None, [], 1, {"job.py": 1}, {"job.py": None}])
def test_a_header_without_such_sources_is_refused(sources: Value) -> None:
    with pytest.raises(VerificationError, match="^sources: "):
        Sources(files=SOURCES).check(replace(HEADER, job={"sources": sources}))


def forged(**changes: Any) -> Records:
    return replace(Records.signed(HEADER, RECORDS, SIGNER), **changes)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (Records.signed(HEADER, RECORDS[::-1], SIGNER), "records: root: expected "),
        (Records.signed(HEADER, RECORDS[:-1], SIGNER), "records: expected 5 digests, got 4"),
        (Records.signed(HEADER, RECORDS, OTHER_SIGNER), "signature of the records"),
        (forged(forms=["int", "None"]), "signature of the records"),
        (forged(form_numbers=bytes(10)), "signature of the records"),
        (Records.signed(replace(HEADER, numerics="native"), RECORDS, SIGNER), "records: run"),
    ],
)
def test_other_records_are_refused(records: Records, message: str, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=message):
        records.check(HEADER)
    with pytest.raises(VerificationError, match=message):
        verify_all(write_files(tmp_path, {**RUN, files.RECORDS: records.to_bytes()}))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"digests": bytes(33)}, "digests"),
        ({"digests": bytes(64)}, "form_numbers"),
        ({"form_numbers": b"\x02\x00" * 5}, "form_numbers"),
        ({"forms": ["x" * (MAX_FORM_CHARS + 1), "y"]}, "forms"),
        ({"forms": [""]}, "forms"),
        ({"forms": ["x"] * 5000}, "forms"),
        ({"forms": "xy"}, "forms"),
        ({"run": b""}, "run"),
        ({"signature": b""}, "signature"),
        ({"digests": "x" * 160}, "digests"),
    ],
)
def test_malformed_records_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UsageError, match=f"^field {field}: "):
        forged(**changes)


@given(values)
@settings(max_examples=100, deadline=None)
def test_no_bytes_of_another_party_raise_anything_else(value: Value) -> None:
    """Whole records, and records with one field of anything."""
    for kind in (Sources, Records):
        honest = decode(RUN[kind.type_name], where="test")
        assert isinstance(honest, dict)
        for data in (
            encode(value),
            *(encode({**honest, name: value}) for name in honest if honest[name] != value),
        ):
            try:
                made = kind.from_bytes(data, where=kind.type_name)
            except TranscriptError as error:
                assert str(error).isprintable()  # noqa: PT017
            else:
                with pytest.raises(VerificationError):
                    made.check(HEADER)


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_no_other_bytes_are_read(data: bytes) -> None:
    for kind in (Sources, Records):
        with pytest.raises(TranscriptError):
            kind.from_bytes(data, where=kind.type_name)


def test_a_run_of_many_records_has_no_room_for_them() -> None:
    assert Records.would_fit(1_000_000)
    assert not Records.would_fit(LIMITS.records_bytes // 34)


def test_forms_are_few() -> None:
    many = [(bytes(32), f"form {index}") for index in range(5000)]
    records = Records.signed(replace(HEADER, dataset_count=5000), many, SIGNER)
    assert (records.form(0), records.form(4094)) == ("form 0", "form 4094")
    assert records.form(4999) == "one of many other forms"


@pytest.mark.parametrize("begin", [TranscriptWriter.create, TranscriptWriter.resume])
def test_what_is_not_the_header_s_is_not_written(begin: Any, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match="records: root"):
        begin(tmp_path, HEADER, SIGNER, [Records.signed(HEADER, RECORDS[::-1], SIGNER)])
    assert read_files(tmp_path) == {}


@pytest.mark.parametrize("written", [0, 1, 2])
def test_a_run_that_died_as_it_began_gets_all_of_it(
    written: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after so many files: resumed, it has the bytes of a run that was not."""
    writes, write = 0, LocalStore.write

    def dying(store: LocalStore, path: str, parts: Any) -> None:
        nonlocal writes
        if writes == written:
            raise KeyboardInterrupt
        writes += 1
        write(store, path, parts)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStore, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            TranscriptWriter.create(tmp_path, HEADER, SIGNER, carried(HEADER))
    assert len(read_files(tmp_path)) == written
    with TranscriptWriter.resume(tmp_path, HEADER, SIGNER, carried(HEADER)) as writer:
        continue_run(writer, 3)
    assert read_files(tmp_path) == RUN


def test_a_run_without_a_commit_carries_what_is_asked_for_last(tmp_path: Path) -> None:
    TranscriptWriter.create(tmp_path, HEADER, SIGNER, carried(HEADER)).close()
    TranscriptWriter.resume(tmp_path, HEADER, SIGNER).close()
    assert list(read_files(tmp_path)) == [files.HEADER]
    TranscriptWriter.resume(tmp_path, HEADER, SIGNER, carried(HEADER)).close()
    assert sorted(read_files(tmp_path)) == sorted([files.HEADER, *files.CARRIED])


@pytest.mark.parametrize("carries", [True, False])
def test_from_the_first_commit_on_a_run_carries_what_it_carried(
    carries: bool, tmp_path: Path
) -> None:
    begun, later = (carried(HEADER), ()) if carries else ((), carried(HEADER))
    with TranscriptWriter.create(tmp_path, HEADER, SIGNER, begun) as writer:
        continue_run(writer, 0)
    with TranscriptWriter.resume(tmp_path, HEADER, SIGNER, later) as writer:
        continue_run(writer, 3)
    assert bool(Transcript.open(tmp_path).carried) == carries


@pytest.mark.parametrize(
    ("record", "form"),
    [
        ((1, 2, 2.5), "(int x 2, float)"),
        ([None, True, "text", b"bytes"], "[None, bool, str, bytes]"),
        ({"x": 1, 3: [2]}, "{'x': int, int: [int]}"),
        (7, "int"),
    ],
)
def test_the_form_of_a_record(record: Any, form: str) -> None:
    assert form_of(canonical(record, "record"), draws=False) == form
    assert form_of(canonical(record, "record"), draws=True) == f"draws random numbers: {form}"


def test_the_form_of_tensors_and_arrays() -> None:
    import numpy as np
    import torch

    record = (torch.zeros(2, 3), np.zeros(4, "<i2"), np.float64(1))
    form = "(tensor float32 [2, 3], array <i2 [4], array <f8 [])"
    assert form_of(canonical(record, "record"), draws=False) == form


def test_long_forms_are_cut_short_and_stay_apart() -> None:
    forms = {
        form_of(canonical(([1, 2.5] * 100 + [last]), "record"), draws=False) for last in (1, "x")
    }
    assert len(forms) == 2
    assert all(len(form) == MAX_FORM_CHARS for form in forms)
