"""Batches as a function of the seed, and the commitment to the data set.

Which records make up step t, and every random choice of their augmentation, follow from the seed
alone: epochs are counter-based permutations, and each record is fetched with random numbers keyed
by (seed, its place in the batch, step). So neither worker processes nor prefetching nor the steps
run before can change a batch, and it is never up to the trainer.

Digests cover the canonical bytes of a record: see `canonical`. The commitment to the data set also
says which records draw random numbers: no batch follows from these alone.
"""

from __future__ import annotations

import multiprocessing
import signal
import struct
from collections.abc import Generator, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, default_collate
from torch.utils.data._utils import signal_handling

from veritrain.encoding import Digest, Value, digest, digest_value
from veritrain.errors import JobError, UsageError, VeritrainError
from veritrain.job.job import Job, MapDataset, users_code
from veritrain.job.shards import parts
from veritrain.numerics import Profile, resolve
from veritrain.numerics.cpu import philox
from veritrain.numerics.patches.drawing import Draws, watched_generators
from veritrain.numerics.profile import Scope
from veritrain.runtime.progress import Count, Stage, tell
from veritrain.transcript import merkle, tensors
from veritrain.transcript.forms import form_of

Batch: TypeAlias = tuple[Any, ...]  # one collated micro-batch for each accumulation of each shard
RECORD, RANDOM_RECORD = "record", "random record"  # domains of digests
_COMMIT_CHUNK = 64  # records fetched at a time for the commitment
_PREFETCH = 2  # batches that each worker process prepares ahead


class Batches:
    """The batches of a job, by step: `batches[step]` for 1 <= step <= job.steps.

    Args:
        job: whose batches.
        profile: computes them; None for the job's own numerics.
        shards: the shards of each step whose micro-batches are fetched; None for all.

    Raises:
        JobError: the data set is not map-style, is empty, or is smaller than one batch.
    """

    def __init__(
        self, job: Job, profile: Profile | None = None, shards: range | None = None
    ) -> None:
        self.job = job
        self.shards = shards if shards is not None else range(job.shards)
        self.profile = profile if profile is not None else resolve(job.numerics)
        self.dataset = self._open()
        with users_code("dataset: len"):
            self.count = len(self.dataset)
        if self.count < job.batch_size:
            raise JobError(
                f"dataset: expected at least batch_size = {job.batch_size} records, "
                f"got {self.count}"
            )
        self._is_random = False  # a record was seen to draw random numbers
        self._epoch = -1
        self._order: np.ndarray[Any, np.dtype[np.int64]] = np.empty(0, np.int64)

    def indices(self, step: int) -> list[int]:
        """The records of a step, in order. Each epoch is one permutation of all records; those
        that do not fill a batch at its end are left out."""
        size = self.job.batch_size
        epoch, position = divmod(step - 1, self.count // size)
        if epoch != self._epoch:
            self._order = philox.permutation(self.job.seed, "order", epoch, self.count)
            self._epoch = epoch
        return [int(index) for index in self._order[position * size : (position + 1) * size]]

    def __getitem__(self, step: int) -> Batch:
        """Fetch and collate the records of a step, or of those shards of it that are asked for.

        Raises:
            JobError: the data set or `collate` raised.
        """
        return self.of_shards(step, self.shards)

    def of_shards(self, step: int, shards: range) -> Batch:
        """The micro-batches of some shards of a step.

        Raises:
            JobError: the data set or `collate` raised.
        """
        records = self._records(step, shards)
        size = self.job.batch_size // (self.job.shards * self.job.accumulate)
        parts = range(0, len(records), size)
        return owned(tuple(self._collate(records[i : i + size], step) for i in parts))

    def iterate(self, first: int, last: int, workers: int) -> Generator[Batch]:
        """Batches of the steps first to last, inclusive, prepared by `workers` processes ahead of
        time (0: by this process, when asked)."""
        if workers == 0 or first > last:
            yield from (self[step] for step in range(first, last + 1))
            return
        loader = DataLoader(
            cast("Any", _Guarded(self)),
            batch_size=None,
            sampler=range(first, last + 1),
            num_workers=workers,
            collate_fn=_unchanged,
            prefetch_factor=_PREFETCH,
            worker_init_fn=_leave_signals_to_the_parent,
            generator=torch.Generator(),  # else it draws from the caller's
            # A job file's own classes cannot be found by name in a process that starts afresh.
            multiprocessing_context=_fork_where_possible(),
        )
        results: Any = iter(loader)
        started, given = list(results._workers), 0
        try:
            for step in range(first, last + 1):
                batch = _batch_of(results)
                given = step
                yield batch
        finally:
            if given < last:
                _kill(results, started)
            results._shutdown_workers()

    def commitment(self) -> Digest:
        """Merkle root over the digests of all records, fetched with random numbers that do not
        depend on the job's seed: one data set has one commitment.

        Raises:
            JobError: a record has no canonical bytes; names the record and the place in it.
        """
        return merkle.root(list(self.record_digests(range(self.count))))

    def record_digests(self, indices: Sequence[int]) -> Generator[Digest]:
        """The digests of these records, as `commitment` takes them: in the domain of those that
        draw random numbers, which are other values in a batch, or of those that do not.

        Raises:
            JobError: as `commitment`.
        """
        for index, record, drew in self._records_as_committed(indices):
            yield _digested(RANDOM_RECORD if drew else RECORD, record, f"record {index}")[0]

    def described(self, indices: Sequence[int]) -> Generator[tuple[Digest, str]]:
        """The digests of these records, each with the record's form.

        Raises:
            JobError: as `commitment`.
        """
        forms: dict[str, str] = {}  # each text once: a data set has few forms and many records
        for index, record, drew in self._records_as_committed(indices):
            domain = RANDOM_RECORD if drew else RECORD
            value, form = _digested(domain, record, f"record {index}")
            text = form_of(form, draws=drew)
            yield value, forms.setdefault(text, text)

    def _records_as_committed(self, indices: Sequence[int]) -> Generator[tuple[int, Any, bool]]:
        """Index, record, and whether it draws random numbers."""
        for start in range(0, len(indices), _COMMIT_CHUNK):
            chunk = indices[start : start + _COMMIT_CHUNK]
            with self._active("record", chunk[0]) as scope, watched_generators() as draws:
                fetched = [self._record_as_committed(scope, draws, index) for index in chunk]
            for index, (record, drew) in zip(chunk, fetched, strict=True):
                yield index, record, drew
            done = min(start + _COMMIT_CHUNK, len(indices))
            tell(Count(doing="reading the data set", done=done, total=len(indices), unit="records"))

    def record(self, index: int) -> Any:
        """A record as `commitment` takes it.

        Raises:
            JobError: the data set raised.
        """
        with self._active("record", index) as scope, watched_generators() as draws:
            return self._fetched(scope, draws, index)[0]

    def _record_as_committed(self, scope: Scope, draws: Draws, index: int) -> tuple[Any, bool]:
        """As `_fetched`. What a data set draws once, when first used, does not make its records
        random
        ones: the first that draws has to draw again."""
        record, drew = self._fetched(scope, draws, index)
        if drew and not self._is_random:
            record, drew = self._fetched(scope, draws, index)
            self._is_random = drew
        return record, drew

    def _fetched(self, scope: Scope, draws: Draws, index: int) -> tuple[Any, bool]:
        """A record under a key of its own, and whether it drew random numbers."""
        scope.rekey(seed=0, purpose="record", step=index)
        draws.begin()
        with users_code(f"dataset: record {index}"):
            record = self.dataset[index]
        return record, draws.happened()

    def _records(self, step: int, shards: range) -> list[Any]:
        records: list[Any] = []
        size, indices = self.job.batch_size // self.job.shards, self.indices(step)
        with self._active("sample", step) as scope:
            for position in range(shards.start * size, shards.stop * size):
                index = indices[position]
                scope.rekey(seed=self.job.seed, purpose=f"sample/{position}", step=step)
                with users_code(f"dataset: record {index} (step {step})"):
                    records.append(self.dataset[index])
        return records

    def _active(self, purpose: str, step: int) -> AbstractContextManager[Scope]:
        return self.profile.active(seed=self.job.seed, purpose=purpose, step=step)

    def _open(self) -> MapDataset:
        source = self.job.dataset
        if isinstance(source, type) or not isinstance(source, MapDataset):
            tell(Stage(doing="opening the data set"))
            with users_code("dataset: the function"), self._active("dataset", 0):
                source = source()
        if isinstance(source, IterableDataset) or not isinstance(source, MapDataset):
            raise JobError(
                "dataset: expected a map-style data set (len(dataset) and dataset[i]), "
                f"got {type(source).__name__}"
            )
        return source

    def _collate(self, records: list[Any], step: int) -> Any:
        if self.job.collate is not None:
            with users_code(f"dataset: collate (step {step})"), self._active("collate", step):
                return self.job.collate(records)
        try:
            return default_collate(records)  # only moves bytes: it needs no numerics
        except Exception as error:  # KeyError where dicts have different keys, for example
            raise JobError(
                f"step {step}: the records of a batch do not collate "
                f"({type(error).__name__}: {error}); pass collate=..."
            ) from error


def owned(batch: Batch) -> Batch:
    """The batch with each tensor and array in C order in memory of its own: how it came about must
    not show, and a step may write into it."""
    seen: set[int] = set()

    def own(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return np.array(value, order="C")
        if not isinstance(value, Tensor) or value.layout is not torch.strided:
            return value
        storage = value.untyped_storage()
        is_shared = storage.data_ptr() in seen
        seen.add(storage.data_ptr())
        is_tight = (
            storage.nbytes() == value.numel() * value.element_size() and value.is_contiguous()
        )
        if is_tight and not is_shared:
            return value
        return value.detach().clone(memory_format=torch.contiguous_format)

    return cast("Batch", tree_map(own, batch))


def batch_digest(batch: Batch, shards: int = 1) -> Digest:
    """Digest of a step's micro-batches; of more than one shard, it is that of the shards' digests.

    Args:
        batch: of all shards.
        shards: how many these are.

    Raises:
        JobError: a batch holds something without canonical bytes; names the place in it.
        UsageError: the micro-batches do not make so many equal shards.
    """
    if shards == 1:
        return _digested("batch", batch, "batch")[0]
    return joined_digest(shard_digests(batch, shards))


def shard_digests(batch: Batch, shards: int) -> list[Digest]:
    """The digest of each shard's micro-batches, in order.

    Args:
        batch: of these shards alone.
        shards: how many they are.

    Raises:
        JobError, UsageError: as `batch_digest`.
    """
    return [batch_digest(tuple(part)) for part in parts(batch, shards)]


def joined_digest(digests: Sequence[Digest]) -> Digest:
    """The digest of a step's batch, from those of all its shards (two or more), in order."""
    return digest_value("batch in shards", list(digests))


def _digested(domain: str, value: object, where: str) -> tuple[Digest, Value]:
    """Digest and canonical form."""
    try:
        form = canonical(value, where)
        return digest_value(domain, form), form
    except (ValueError, RecursionError) as error:  # nested too deep, or inside itself
        raise JobError(f"{where}: {error}") from error


def canonical(value: object, where: str) -> Value:
    """The canonical form of a record or batch: nested lists, each starting with its kind.

    dtype and shape are part of it, so that no two different values have the same form. Tensors and
    arrays are represented by the digest of their little-endian C-order bytes.

    Raises:
        JobError: a value of a type without canonical form; `where` and the path to it are named.
    """
    if value is None or type(value) in (bool, str, bytes):
        return cast("Value", value)
    if type(value) is int:
        size = value.bit_length() // 8 + 1
        return ["int", value.to_bytes(size, "little", signed=True)]
    if type(value) is float:
        return ["float", struct.pack("<d", value)]
    if isinstance(value, Tensor):
        try:
            entry = tensors.entry("value", value.detach())
        except UsageError as error:
            raise JobError(f"{where}: {error}") from error
        return ["tensor", entry.dtype, list(entry.shape), entry.digest]
    if isinstance(value, np.ndarray | np.generic):
        return _canonical_array(np.asarray(value), where)
    if isinstance(value, dict):
        return ["dict", *(_canonical_item(key, item, where) for key, item in value.items())]
    if isinstance(value, tuple):
        names: list[Value] = list(getattr(value, "_fields", ()))
        items = [canonical(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return ["namedtuple", names, *items] if names else ["tuple", *items]
    if isinstance(value, list):
        return ["list", *(canonical(item, f"{where}[{i}]") for i, item in enumerate(value))]
    if _is_image(value):
        return _canonical_image(cast("Any", value), where)
    raise JobError(
        f"{where}: a value of type {type(value).__module__}.{type(value).__qualname__} has no "
        "canonical bytes; return tensors, arrays, numbers, text, bytes, images, lists, tuples "
        "or dicts"
    )


def _canonical_item(key: object, item: object, where: str) -> Value:
    # The order of a dict is what the data set makes it: it is kept, and thus committed to.
    return [canonical(key, f"{where} (key)"), canonical(item, f"{where}[{key!r}]")]


def _canonical_array(array: np.ndarray[Any, Any], where: str) -> Value:
    # Long doubles have bytes that mean nothing, and other ones on other machines.
    is_long = array.dtype.kind in "fc" and array.dtype.char in "gG"
    if array.dtype.kind not in "biufcSUMm" or is_long:
        raise JobError(f"{where}: an array of dtype {array.dtype} has no canonical bytes")
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    shape: list[Value] = list(array.shape)
    return ["array", little.dtype.str, shape, digest("tensor", little.tobytes())]


def _canonical_image(image: Any, where: str) -> Value:
    # Pixels of palette images are numbers of colours, and one colour or value may be transparent.
    palette = bytes(image.getpalette("RGBA")) if image.mode in ("P", "PA") else None
    transparency = canonical(image.info.get("transparency"), f"{where} (transparency)")
    pixels = digest("tensor", image.tobytes())
    return ["image", image.mode, list(image.size), pixels, palette, transparency]


def _is_image(value: object) -> bool:
    """A PIL image, told by what it offers: the library itself is not needed."""
    return all(hasattr(value, name) for name in ("mode", "size", "tobytes", "getpalette", "info"))


class _Guarded:
    """Batches for worker processes: an error travels as a value, so that it stays one clear line
    and does not become a foreign traceback on its way."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __getitem__(self, step: int) -> Batch | VeritrainError:
        try:
            return self._batches[step]
        except VeritrainError as error:
            return error


def _batch_of(results: Iterator[Any]) -> Batch:
    """The next batch that a worker process has prepared.

    Raises:
        JobError: what was raised there, or a worker was killed.
    """
    try:
        result = next(results)
    except RuntimeError as error:
        raise JobError(f"dataset: worker process: {str(error).strip()}") from error
    if isinstance(result, VeritrainError):
        raise result
    return result


def _kill(results: Any, workers: Sequence[Any]) -> None:
    """End worker processes whose batches nobody wants; one that hangs in a record has no ear for
    SIGTERM."""
    remove: Any = getattr(signal_handling, "_remove_worker_pids")  # noqa: B009 - private in PyTorch
    remove(id(results))  # their end is no failure
    results._worker_pids_set = False
    for worker in workers:
        worker.kill()


def _leave_signals_to_the_parent(worker: int) -> None:
    """A terminal and batch systems signal every process of a group; the parent ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _unchanged(batch: Any) -> Any:
    return batch


def _fork_where_possible() -> str | None:
    return "fork" if "fork" in multiprocessing.get_all_start_methods() else None
