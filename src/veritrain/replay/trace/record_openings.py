"""Openings of the records of a step's batch.

A referee without the data set makes the batch again, from records that are in the data set's tree.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from veritrain.encoding import Digest, Value, digest, encode
from veritrain.errors import FieldError, InconclusiveError, VerificationError
from veritrain.job.data import RANDOM_RECORD, RECORD, Batches, batch_digest, canonical
from veritrain.job.job import Job
from veritrain.replay.trace.openings import (
    FalseOpeningError,
    bytes_of,
    fields_of,
    list_of,
    pair_of,
)
from veritrain.replay.trace.packing import pack, unpack
from veritrain.transcript import merkle
from veritrain.transcript.records import Header


def records_opening(batches: Batches, step: int) -> Value:
    """The records of a step's batch, each with its proof in the data set's tree.

    Raises:
        JobError: the records cannot be given away as bytes.
    """
    digests = list(batches.record_digests(range(batches.count)))
    tree = merkle.Tree(digests)
    rows: list[Value] = []
    for index in batches.indices(step):
        rows.append([pack(batches.record(index)), list(tree.proof(index))])
    return {"records": rows}


def opened_records(job: Job, header: Header, step: int, detail: Value) -> Digest:
    """Digest of the batch that the opened records make.

    Raises:
        FalseOpeningError: they are not the committed ones that the seed chooses.
        InconclusiveError: a record draws random numbers: in the batch it has other values.
        JobError: the job's own code fails.
    """
    (rows,) = fields_of(detail, "records")
    opened = _OpenedRecords(header.dataset_count)
    batches = Batches(replace(job, dataset=opened))
    indices = batches.indices(step)
    items = list_of(rows)
    if len(items) != len(indices):
        raise FalseOpeningError(f"expected {len(indices)} records, got {len(items)}")
    drawing: list[int] = []
    for index, row in zip(indices, items, strict=True):
        try:
            opened.records[index], drew = _committed(row, index, header)
        except (FieldError, VerificationError) as error:
            raise FalseOpeningError(f"record {index}: {error}") from None
        drawing += [index] * drew
    if drawing:
        raise InconclusiveError(
            f"record {drawing[0]} of the batch draws random numbers, "
            "which only the data set's own code makes"
        )
    return batch_digest(batches[step], job.shards)


def _committed(row: Value, index: int, header: Header) -> tuple[Any, bool]:
    """A record of the data set that the header commits to, and whether it draws random numbers.

    Raises:
        FieldError: it is malformed.
        VerificationError: it is another one.
    """
    packed, proof = pair_of(row)
    record = unpack(packed)
    nodes = [bytes_of(node) for node in list_of(proof)]
    try:
        value = encode(canonical(record, "record"))
    except ValueError as error:  # nested deeper than a canonical value
        raise FieldError(str(error)) from None

    def verify_as(domain: str) -> None:
        found = digest(domain, value)
        merkle.verify_inclusion(found, index, header.dataset_count, nodes, header.dataset_root)

    try:
        verify_as(RECORD)
    except VerificationError:
        verify_as(RANDOM_RECORD)
        return record, True
    return record, False


class _OpenedRecords:
    """A data set of which only the opened records are known."""

    def __init__(self, count: int) -> None:
        self.records: dict[int, Any] = {}
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Any:
        return self.records[index]
