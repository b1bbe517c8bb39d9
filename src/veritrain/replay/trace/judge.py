"""The judge of a dispute: what an entry must be, given the one before it that both parties name.

The first difference of two entries decides what is looked at (docs/disputes.md, section 4):

    logs        a leaf names a rounding log just where the numerics have one
    form        an entry that is not of the one form is false
    leaves      equal traces: their outcome against both leaves
    inputs      entry 0: the agreed leaf, and the batch that seed and data set prescribe
    structure   what is called, with which views of which cells: the job's own code says it
    reads       which entry wrote a cell last, and what: the entries in between say it
    results     what came out: the operator is computed again from its operands

An opening comes from the trainer, who can give it if it told the truth, or from both, and is checked against what
both parties are bound to. What cannot be decided is INCONCLUSIVE.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from torch import Tensor

from veritrain.encoding import CHUNK_BYTES, Digest, Value, digest, encode
from veritrain.errors import InconclusiveError, UsageError
from veritrain.job.job import Job
from veritrain.job.sources import commitment
from veritrain.job.state import capture
from veritrain.job.step import Program
from veritrain.numerics import resolve
from veritrain.protocols.dispute.judge import Answered, Ask, Case, Loser, Ruling
from veritrain.protocols.dispute.limits import LIMITS
from veritrain.protocols.dispute.messages import PARTIES, Role
from veritrain.replay.trace import calls
from veritrain.replay.trace.arithmetic import Arithmetic
from veritrain.replay.trace.bodies import check_entry, peaks_of, position_after, rows
from veritrain.replay.trace.cells import View, cell_digest, tight
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.openings import (
    FalseOpeningError,
    Prefix,
    StateBefore,
    opened_cells,
    opened_entries,
    opened_groups,
    opened_log,
    opened_operands,
    opened_part,
    opened_records,
    tile_size,
)
from veritrain.replay.trace.recompute import operator_of, recompute, recompute_tile, state_tensor
from veritrain.replay.trace.recorder import initial_trace
from veritrain.replay.trace.shapes import layout_of
from veritrain.replay.trace.structure import UNKNOWN, next_structure, structure_of
from veritrain.replay.trace.tiles import Tile, group_chunks, has_parts, tile
from veritrain.transcript import merkle
from veritrain.transcript.fields import differences, shown
from veritrain.transcript.limits import LIMITS as TRANSCRIPT
from veritrain.transcript.records import Leaf, TensorEntry

T = TypeVar("T")
_WHOLE_BYTES = 1 << 18  # of operands that are opened whole; of more, parts are, where they decide
# of operands of one operator: what a message holds beside a rounding log
_MOST_BYTES = LIMITS.detail_bytes - TRANSCRIPT.rounding_bytes - (1 << 20)
_MOST_RECORDS = 1 << 27  # of a data set whose order is made again; each takes 8 bytes and more
_OPTIMIZER = "optimizer/"
Check = Callable[[], "Ruling | Ask | None"]


class OperatorJudge:
    """A `Judge` who needs neither data set nor a big machine.

    With the job it decides all that can be decided. Without, it decides what follows from the entries and
    from computing an operator again, whose settings are in the header; what the job's code says is
    INCONCLUSIVE then.
    """

    def __init__(self, job: Job | None) -> None:
        self._job = job
        self._commitment = None if job is None else encode(commitment(job))

    def next(self, case: Case, answered: Sequence[Answered]) -> Ruling | Ask:
        """See `Judge.next`."""
        if self._commitment is not None and encode(case.header.job) != self._commitment:
            raise InconclusiveError("the run is of another job than the referee's")
        try:
            return _Decision(self._job, case, answered).make()
        except _CaughtError as error:
            return error.ruling


class _CaughtError(Exception):
    """A party opened something false."""

    def __init__(self, role: Role, error: FalseOpeningError) -> None:
        super().__init__()
        self.ruling = Ruling(
            loser=Loser.of(role), reason=f"what the {role.value} opened is false: {error}"
        )


class _Decision:
    def __init__(self, job: Job | None, case: Case, answered: Sequence[Answered]) -> None:
        self._known_job = job
        self._case = case
        self._answered = answered
        self._bodies = [entry.body for entry in case.entries]

    def make(self) -> Ruling | Ask:
        """The first check with an answer decides."""
        checks: list[Check] = [self._logs, self._form, self._leaves, self._initial]
        checks += [self._records, self._inputs, self._structure, self._reads, self._results]
        for check in checks:
            decided = check()
            if decided is not None:
                return decided
        raise InconclusiveError("nothing in which the entries differ was found false")

    def _logs(self) -> Ruling | None:
        """The numerics say of which steps a leaf names a rounding log."""
        case = self._case
        has_log = case.step > 0 and resolve(self._arithmetic.numerics).has_log
        what = "no rounding log, and the numerics have one"
        if not has_log:
            what = "a rounding log where there is none"
        problems = {
            role: what
            for role, leaf in zip(PARTIES, (case.trainer, case.challenger), strict=True)
            if (leaf.rounding is not None) != has_log
        }
        return _ruling(problems, f"leaf of step {case.step} names")

    def _form(self) -> Ruling | None:
        problems: dict[Role, str] = {}
        for role, entry in zip(PARTIES, self._case.entries, strict=True):
            try:
                check_entry(entry)
            except UsageError as error:
                problems[role] = str(error)
        return _ruling(problems, "is malformed")

    def _leaves(self) -> Ruling | None:
        """The traces are equal: whose leaf is not their outcome?"""
        if self._case.index is not None:
            return None
        outcome = self._bodies[0]
        if outcome.get("refused"):
            return Ruling(
                loser=Loser.TRAINER, reason="its rounding log does not lead through the step"
            )
        leaves = (self._case.trainer, self._case.challenger)
        problems: dict[Role, str] = {}
        for role, leaf in zip(PARTIES, leaves, strict=True):
            claimed = {name: getattr(leaf, name) for name in ("state", "loss", "batch", "rounding")}
            found = {name: outcome[name] for name in claimed}
            if encode(claimed) != encode(found):
                problems[role] = "; ".join(differences(found, claimed))
        return _ruling(problems, f"leaf of step {self._case.step} is not what its trace comes to")

    def _initial(self) -> Ruling | None:
        """Step 0 is built from the job and its seed: the referee does so itself."""
        if self._case.step > 0:
            return None
        index = self._case.entries[0].index
        built = initial_trace(Program.build(self._job), self._case.header.digest)
        expected = digest(TraceEntry.type_name, built[index]) if index < len(built) else None
        problems = {
            role: "the job's initial state has another one"
            for role, entry in zip(PARTIES, self._case.entries, strict=True)
            if entry.digest != expected
        }
        return _ruling(problems, f"entry {index} of step 0")

    def _records(self) -> None:
        """Where the batch is to be made again, the records' order is: it takes memory for each of them."""
        begins = [(body.get("state"), body.get("rounding")) for body in self._bodies]
        count = self._case.header.dataset_count
        if self._case.index == 0 and begins[0] == begins[1] and count > _MOST_RECORDS:
            raise InconclusiveError(f"{count} records are too many to put in order")

    def _inputs(self) -> Ruling | Ask | None:
        if self._case.index != 0:
            return None
        expected = {"state": self._before.state, "rounding": self._case.trainer.rounding}
        problems = {
            role: "; ".join(differences(expected, {name: body[name] for name in expected}))
            for role, body in zip(PARTIES, self._bodies, strict=True)
            if any(body[name] != value for name, value in expected.items())
        }
        return _ruling(problems, "inputs of the step") or self._batch()

    def _batch(self) -> Ruling | Ask:
        case = self._case
        found = self._opened(
            {"open": "records"},
            lambda detail: opened_records(self._job, case.header, case.step, detail),
            PARTIES,
        )
        if isinstance(found, Ask):
            return found
        wrong = [r for r, body in zip(PARTIES, self._bodies, strict=True) if body["batch"] != found]
        if len(wrong) == len(PARTIES) and self._job.collate is not None:
            raise InconclusiveError("collate makes neither party's batch of the records here")
        return _decided(dict.fromkeys(wrong, f"expected {found.hex()}"), "batch")

    def _structure(self) -> Ruling | Ask | None:
        ours = [structure_of(body) for body in self._bodies]
        if encode(ours[0]) == encode(ours[1]):
            return None
        expected = self._next_structure()
        if isinstance(expected, Ask):
            return expected
        problems = {
            role: "; ".join(differences(expected[0], own)) or "a call of another form"
            for role, own in zip(PARTIES, ours, strict=True)
            if encode(own) != encode(expected[0])
        }
        return _ruling(problems, f"entry {self._case.index} is not what the job does next")

    def _next_structure(self) -> tuple[dict[str, Value], dict[int, Digest]] | Ask:
        """What the job does next, by its own code; and digests of the constants that it meets."""

        programs = [Program.build(self._job) for _ in UNKNOWN]

        def read(detail: Value) -> Prefix:
            prefix = Prefix.opened(detail, self._before.state, self._previous)
            for program, unknown in zip(programs, UNKNOWN, strict=True):
                prefix.state.restore(program, unknown)
            return prefix

        prefix = self._opened({"open": "prefix"}, read, PARTIES)
        if isinstance(prefix, Ask):
            return prefix
        return next_structure(programs, self._case.step, prefix.batch, prefix.entries)

    def _reads(self) -> Ruling | Ask | None:
        if self._bodies[0]["kind"] == "outcome":
            return self._position()
        for ours, theirs in zip(*(rows(body, "reads") for body in self._bodies), strict=True):
            if ours != theirs:
                return self._read(ours[0], (ours[2:], theirs[2:]))
        return self._position()

    def _position(self) -> Ruling | None:
        expected = position_after(self._previous)
        problems = {
            role: f"expected {expected}, got {shown(body['log'])}"
            for role, body in zip(PARTIES, self._bodies, strict=True)
            if encode(body["log"]) != encode(expected)
        }
        return _ruling(problems, "place in the rounding log")

    def _read(self, cell: int, claims: Sequence[Sequence[Any]]) -> Ruling | Ask:
        """Which entry wrote a cell last, and what it holds."""
        index = cast(int, self._case.index)
        met = {row[0]: (row[1], row[2]) for row in rows(self._bodies[0], "met")}
        if cell in met:
            truth = self._met(*met[cell], cell)
            if isinstance(truth, Ask):
                return truth
            return self._judge_read(cell, claims, [index, truth])
        first = min(last for last, _ in claims)
        problems = {
            r: "no such entry"
            for r, (last, _) in zip(PARTIES, claims, strict=True)
            if not 0 < last < index
        }
        if problems:
            return _decided(problems, f"cell {cell}")
        entries = self._opened(
            {"open": "entries", "from": first},
            lambda detail: opened_entries(detail, first, self._previous),
            PARTIES,
        )
        if isinstance(entries, Ask):
            return entries
        return self._judge_read(cell, claims, _last_write(entries, cell))

    def _judge_read(
        self, cell: int, claims: Sequence[Sequence[Any]], truth: list[Any] | None
    ) -> Ruling:
        problems = {
            role: "another entry wrote it last, or something else"
            for role, claim in zip(PARTIES, claims, strict=True)
            if list(claim) != truth
        }
        return _decided(problems, f"cell {cell}")

    def _met(self, size: int, origin: list[Any], cell: int) -> Digest | Ask:
        """The content of a cell that no operator made."""
        if origin[:1] == ["batch"]:
            prefix = self._prefix()
            if isinstance(prefix, Ask):
                return prefix
            return cell_digest(tight(list(calls.tensors_in(prefix.batch))[origin[1]]))
        if origin == ["constant"]:
            found = self._next_structure()
            return found if isinstance(found, Ask) else found[1][cell]
        return self._state_cell(origin[1], size)

    def _state_cell(self, name: str, size: int) -> Digest | Ask:
        """The digest of a cell that holds a tensor of the state before, laid out as the model has it."""
        program = Program.build(self._job)
        layout = capture(program)
        names = _sharing(layout, name)
        full = next((n for n in names if _fills_its_cell(layout, n)), None)
        if full is not None:
            return self._full_cell(full, size)
        _require_openable(f"tensor {shown(name)}", sum(layout[n].nbytes for n in names))

        def read(detail: Value) -> StateBefore:
            state = StateBefore.opened(detail, self._before.state)
            for needed in names:
                if needed not in state.contents:
                    raise FalseOpeningError(f"the content of {shown(needed)} is missing")
            state.restore(program)
            return state

        state = self._opened({"open": "state", "names": list(names)}, read, PARTIES)
        if isinstance(state, Ask):
            return state
        tensor = capture(program)[name]
        if tensor.untyped_storage().nbytes() != size:
            raise InconclusiveError(f"tensor {shown(name)} shares its memory with others")
        return cell_digest(tensor)

    def _full_cell(self, name: str, size: int) -> Digest | Ask:
        """The digest of a cell that a tensor fills: that of the tensor."""
        state = self._opened(
            {"open": "state", "names": []},
            lambda detail: StateBefore.opened(detail, self._before.state),
            PARTIES,
        )
        if isinstance(state, Ask):
            return state
        found = next((tensor for tensor in state.tensors if tensor.name == name), None)
        if found is None or found.num_bytes != size:
            raise InconclusiveError(f"the state has no tensor {shown(name)} of {size} bytes")
        return found.digest

    def _prefix(self) -> Prefix | Ask:
        return self._opened(
            {"open": "prefix"},
            lambda detail: Prefix.opened(detail, self._before.state, self._previous),
            PARTIES,
        )

    def _results(self) -> Ruling | Ask | None:
        return self._bookkeeping() or self._layout() or self._result()

    def _bookkeeping(self) -> Ruling | None:
        """What follows without a value, of operators that have parts."""
        body = self._bodies[0]
        if body["kind"] != "operator" or not has_parts(body):
            return None
        sizes = {row[0]: row[1] for row in rows(body, "reads")}
        problems = {
            role: "random numbers that it does not draw, or another size of what it writes"
            for role, body in zip(PARTIES, self._bodies, strict=True)
            if "refused" not in body
            and (
                body["drawn"] != body["draw"]
                or any(sizes.get(row[0], row[1]) != row[1] for row in rows(body, "writes"))
            )
        }
        return _ruling(problems, f"{body['operator']}, entry {self._case.index}")

    def _layout(self) -> Ruling | None:
        """How results lie, of operators that have parts and operands too large to be computed again whole."""
        body = self._bodies[0]
        if (
            body["kind"] != "operator"
            or not has_parts(body)
            or _num_operand_bytes(body) <= _MOST_BYTES
        ):
            return None
        if any("refused" in body for body in self._bodies):
            return None
        claims = [encode(_laid_out(body)) for body in self._bodies]
        expected = encode(_layout(body)) if claims[0] != claims[1] else None
        if expected not in claims:
            return None
        problems = {
            role: "it lies in another way"
            for role, claim in zip(PARTIES, claims, strict=True)
            if claim != expected
        }
        return _ruling(problems, f"result of {body['operator']}, entry {self._case.index}")

    def _result(self) -> Ruling | Ask | None:
        row = self._divisible()
        if row is not None:
            return self._part(row)
        kind = self._bodies[0]["kind"]
        expected = {"state": self._state, "outcome": self._outcome, "operator": self._operator}[
            str(kind)
        ]()
        if isinstance(expected, Ask):
            return expected
        problems = {
            role: "; ".join(differences(expected, {name: body.get(name) for name in expected}))
            for role, body in zip(PARTIES, self._bodies, strict=True)
            if encode({name: body.get(name) for name in expected}) != encode(expected)
        }
        name = self._bodies[0].get("operator", kind)
        return _ruling(
            problems, f"result of {name}, entry {self._case.index} of step {self._case.step}"
        )

    def _divisible(self) -> tuple[list[Any], list[Any]] | None:
        """The first written cell that differs, as both have it, if a part of it decides."""
        ours, theirs = self._bodies
        if ours["kind"] != "operator" or ours["log"] is not None or "refused" in {*ours, *theirs}:
            return None
        if any(encode(ours[name]) != encode(theirs[name]) for name in ("results", "drawn")):
            return None
        if _num_operand_bytes(ours) <= _WHOLE_BYTES:
            return None
        if [row[:2] for row in rows(ours, "writes")] != [row[:2] for row in rows(theirs, "writes")]:
            return None
        for pair in zip(rows(ours, "writes"), rows(theirs, "writes"), strict=True):
            if pair[0][2] != pair[1][2]:
                is_divisible = pair[0][1] and tile(ours, pair[0][0], 0, 1) is not None
                return pair if is_divisible else None
        return None

    def _part(self, pair: tuple[list[Any], list[Any]]) -> Ruling | Ask:
        """Who is wrong in the first group of chunks that differs."""
        body, (cell, size, _, _) = self._bodies[0], pair[0]
        chunks = group_chunks(size)
        groups = self._both(
            {"open": "groups", "cell": cell, "chunks": chunks},
            [lambda detail, row=row: opened_groups(detail, row, chunks) for row in pair],
        )
        if isinstance(groups, Ask):
            return groups
        first = next(i for i, (a, b) in enumerate(zip(*groups, strict=True)) if a != b)
        start = first * chunks * CHUNK_BYTES
        stop = min(size, start + chunks * CHUNK_BYTES)
        part = cast(Tile, tile(body, cell, start, stop))  # there is one: see `_divisible`
        _require_openable(str(body["operator"]), *tile_size(part, size, rows(body, "reads")))
        what: dict[str, Value] = {"open": "tile", "cell": cell, "start": start, "stop": stop}
        parts = self._both(
            what, [lambda detail, row=row: opened_part(detail, row, part) for row in pair]
        )
        operands = self._opened(
            what, lambda detail: opened_operands(detail, rows(body, "reads"), part), PARTIES
        )
        if isinstance(parts, Ask) or isinstance(operands, Ask):
            return Ask(of=PARTIES, what=what)
        expected = recompute_tile(self._arithmetic, self._case.step, body, part, operands)
        problems = {
            role: f"another in bytes {start} to {stop}"
            for role, found in zip(PARTIES, parts, strict=True)
            if found != expected
        }
        return _decided(
            problems, f"result of {body['operator']}, entry {self._case.index}, cell {cell}"
        )

    def _both(self, what: dict[str, Value], read: Sequence[Callable[[Value], T]]) -> list[T] | Ask:
        """What each party opened, as its own `read` checks it."""
        for answered in self._answered:
            if encode(answered.ask.what) == encode(what):
                found: list[T] = []
                for role, check in zip(PARTIES, read, strict=True):
                    try:
                        found.append(check(answered.details[role]))
                    except FalseOpeningError as error:
                        raise _CaughtError(role, error) from None
                return found
        return Ask(of=PARTIES, what=what)

    def _operator(self) -> dict[str, Value] | Ask:
        body = self._bodies[0]
        _require_openable(str(body["operator"]), _num_operand_bytes(body))
        rounding = self._case.trainer.rounding if body["log"] is not None else None
        opened = self._opened(
            {"open": "operands", "log": rounding is not None},
            lambda detail: (
                opened_cells(detail, rows(body, "reads")),
                opened_log(detail, rounding),
            ),
        )
        if isinstance(opened, Ask):
            return opened
        found = recompute(self._arithmetic, self._case.step, body, *opened)
        names = ("refused",) if "refused" in found else ("results", "writes", "drawn", "logged")
        absent = {"results", "writes", "drawn", "logged", "refused"} - set(names)
        return {**{name: found[name] for name in names}, **dict.fromkeys(absent)}

    def _state(self) -> dict[str, Value] | Ask:
        """The tensor that the cell holds, and the tree with it."""
        body = self._bodies[0]
        tensor = cast("dict[str, Value]", body["tensor"])
        if body["view"] is not None:
            found = self._viewed(body)
            if isinstance(found, Ask):
                return found
            tensor = found.to_value()
        place, peaks = peaks_of(self._case.previous)
        frontier = merkle.Frontier.resumed(place, peaks)
        frontier.append(TensorEntry.from_value(tensor).to_bytes())
        return {"tensor": tensor, "peaks": list(frontier.peaks)}

    def _viewed(self, body: Mapping[str, Value]) -> TensorEntry | Ask:
        view = View.from_value(body["view"])
        (row,) = rows(body, "reads")
        tensor = cast("dict[str, Any]", body["tensor"])
        if view.is_whole and view.offset == 0 and view.end() == row[1]:
            return TensorEntry.from_value({**tensor, "digest": row[3]})
        _require_openable(f"tensor {shown(tensor['name'])}", row[1])
        contents = self._opened(
            {"open": "operands", "log": False}, lambda detail: opened_cells(detail, [row])
        )
        return contents if isinstance(contents, Ask) else state_tensor(body, contents)

    def _outcome(self) -> dict[str, Value] | Ask:
        place, peaks = peaks_of(self._case.previous)
        refused: Value = False
        rounding = cast("Digest | None", self._bodies[0]["rounding"])
        if rounding is not None:
            log = self._opened({"open": "log"}, lambda detail: opened_log(detail, rounding))
            if isinstance(log, Ask):
                return log
            refused = len(log or b"") != self._bodies[0]["log"]
        return {"state": merkle.Frontier.resumed(place, peaks).root(), "refused": refused}

    @property
    def _job(self) -> Job:
        """For what its code says."""
        if self._known_job is None:
            raise InconclusiveError("what differs follows from the job's code: this needs the job")
        return self._known_job

    @property
    def _arithmetic(self) -> Arithmetic:
        if self._known_job is None:
            return Arithmetic.from_header(self._case.header)
        return Arithmetic.of(self._known_job)

    @property
    def _before(self) -> Leaf:
        """The agreed leaf; step 0, which has none, was decided."""
        return cast(Leaf, self._case.before)

    @property
    def _previous(self) -> TraceEntry:
        """The agreed entry; entry 0, which has none, was decided."""
        return cast(TraceEntry, self._case.previous)

    def _opened(
        self,
        what: dict[str, Value],
        read: Callable[[Value], T],
        of: tuple[Role, ...] = (Role.TRAINER,),
    ) -> T | Ask:
        """What was opened, as `read` checks it, or the question for it.

        What not every job can give away as bytes, or in one message, is asked of both parties: either may
        have none.
        """
        for answered in self._answered:
            if encode(answered.ask.what) != encode(what):
                continue
            for role in of:
                detail = answered.details[role]
                if detail is None and len(of) > 1:
                    continue
                try:
                    return read(detail)
                except FalseOpeningError as error:
                    raise _CaughtError(role, error) from None
            raise InconclusiveError(f"neither party can give away the {what['open']}")
        return Ask(of=of, what=what)


def _num_operand_bytes(body: Mapping[str, Value]) -> int:
    return sum(row[1] for row in rows(body, "reads"))


def _layout(body: Mapping[str, Value]) -> Value:
    """How an operator lays out what it makes and writes; None where it takes computing to say."""
    try:
        found = layout_of(operator_of(body), body)
    except InconclusiveError:
        return None
    return None if found is None else [found[0], [*found[1]]]


def _laid_out(body: Mapping[str, Value]) -> Value:
    """The same, as an entry says."""
    return [body["results"], [row[:2] for row in rows(body, "writes")]]


def _require_openable(what: str, size: int, values: int = 0) -> None:
    """Before it is asked for: nobody can open more than a message holds, and nobody loses by that.

    Raises:
        InconclusiveError: so many bytes, or CBOR values, are too many.
    """
    if size > _MOST_BYTES or values > LIMITS.message_items // 2:
        raise InconclusiveError(f"{what}: {size} bytes, {values} values are too many to open")


def _sharing(layout: Mapping[str, Tensor], name: str) -> list[str]:
    """The tensors of a state in one cell with this one; an optimiser's have cells of their own."""
    if name.startswith(_OPTIMIZER):
        return [name]
    own = {n: x.untyped_storage().data_ptr() for n, x in layout.items()}
    return [n for n in sorted(own) if own[n] == own[name] and not n.startswith(_OPTIMIZER)]


def _fills_its_cell(layout: Mapping[str, Tensor], name: str) -> bool:
    """Whether the tensor is all of its cell, in C order, as those of an optimiser are (`state.restore`)."""
    if name.startswith(_OPTIMIZER):
        return True
    tensor = layout[name]
    return tensor.is_contiguous() and tensor.nbytes == tensor.untyped_storage().nbytes()


def _ruling(problems: Mapping[Role, str], what: str) -> Ruling | None:
    """Who loses where these claims are false; None where none is."""
    if not problems:
        return None
    text = "; ".join(f"the {role.value}'s: {problem}" for role, problem in problems.items())
    return Ruling(loser=Loser.of(*problems), reason=f"{what}: {text}")


def _decided(problems: Mapping[Role, str], what: str) -> Ruling:
    """Who loses where one of two different claims must be false.

    Raises:
        InconclusiveError: neither was found so.
    """
    ruling = _ruling(problems, what)
    if ruling is None:
        raise InconclusiveError(f"{what}: no claim was found false")
    return ruling


def _last_write(entries: Sequence[TraceEntry], cell: int) -> list[Any] | None:
    """The last of these entries that wrote or met a cell, and the content's digest."""
    for entry in reversed(entries):
        body = entry.body
        met = {row[0] for row in rows(body, "met")} if "met" in body else set()
        found = [(row[0], row[3]) for row in rows(body, "reads") if row[0] in met] if met else []
        found += [(row[0], row[2]) for row in rows(body, "writes")] if "writes" in body else []
        for number, content in reversed(found):
            if number == cell:
                return [entry.index, content]
    return None
