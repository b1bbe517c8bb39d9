"""Disputes over full-size models: rounds, messages, bytes, the time of each party, evidence.

The chain of leaves is generated; the disputed step is a real one of ResNet-50 or GPT-2 124M under
`exact` numerics, and the trainer's result of one operator of it is wrong in one bit, from which it
honestly goes on. The operators are taken by what they read and write: the median one, the largest
and some between. The referee's time is that of all its calls; its memory that of a process that
does nothing but play the dispute again from the evidence.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks.large import MODELS, peak
from veritrain.encoding import Digest, digest
from veritrain.job.data import Batches, batch_digest
from veritrain.job.job import Job
from veritrain.job.sources import commitment
from veritrain.job.state import capture
from veritrain.job.step import Program, run_step
from veritrain.parties.journal import Journal
from veritrain.protocols.dispute.challenge import make_challenge, open_challenge
from veritrain.protocols.dispute.claims import Entries
from veritrain.protocols.dispute.judging.operator_judge import OperatorJudge
from veritrain.protocols.dispute.messages import PARTIES, Role
from veritrain.protocols.dispute.offline_check import check_bundle
from veritrain.protocols.dispute.party import DisputeParty
from veritrain.protocols.dispute.referee import Deadlines, Referee
from veritrain.protocols.dispute.replayed_claims import ReplayedClaims
from veritrain.replay.trace.entry import TraceEntry
from veritrain.replay.trace.entry_bodies import OperatorBody, read_body
from veritrain.replay.trace.tracer import Tracer
from veritrain.transcript import Header, Signer, merkle, state_entries, state_root
from veritrain.transcript.records import Head, Leaf, SignedHead

_LENGTHS = (1_000, 1_000_000)
_QUANTILES = (0.1, 0.5, 0.9, 1.0)  # of operators by bytes, for the shorter run
Row = dict[str, Any]


def dispute() -> list[Row]:
    """One row for each model, length of run and operator."""
    return [row for model in MODELS for steps in _LENGTHS for row in _rows(model, steps)]


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What `ReplayedClaims` needs of a transcript."""

    header: Header
    leaves: Sequence[Leaf]
    checkpoint_steps: tuple[int, ...]
    state: dict[str, Tensor]

    def load_state(self, step: int, *, check: object) -> dict[str, Tensor]:
        return self.state

    def rounding_log(self, step: int) -> None:
        return None


class _Stage:
    """A generated run whose step `self.step` is real, and its honest and its wrong side."""

    def __init__(self, model: str, steps: int) -> None:
        self.job = MODELS[model].job("exact", steps)
        self.step = 2 * steps // 3
        self.keys = {role: Signer.generate() for role in Role}
        program, batches = Program.build(self.job), Batches(self.job)
        run_step(program, self.step - 1, batches[self.step - 1])
        self._state = {name: tensor.clone() for name, tensor in capture(program).items()}
        before = state_root(state_entries(self._state))
        start = perf_counter()
        loss = run_step(program, self.step, batches[self.step])
        self.step_seconds = perf_counter() - start
        leaf = {"batch": batch_digest(batches[self.step]), "loss": loss}
        self._real = {**leaf, "state": state_root(state_entries(capture(program)))}
        self.header = _header(self.job, batches, self.keys[Role.TRAINER])
        self.leaves = self._chain(steps, before, self._real)

    @cached_property
    def honest(self) -> ReplayedClaims:
        return ReplayedClaims(
            self.job, self._run(self.leaves), _encoded(self.leaves[: self.step + 1])
        )

    @cached_property
    def false_leaves(self) -> list[Leaf]:
        wrong = {**self._real, "state": digest("tensor", b"wrong")}
        chain = [*self.leaves[: self.step], replace(self.leaves[self.step], **wrong)]
        for leaf in self.leaves[self.step + 1 :]:
            chain.append(replace(leaf, previous=chain[-1].digest))
        return chain

    @cached_property
    def operators(self) -> list[int]:
        """Entries with a float32 result of their own, by what they read and write."""
        found: list[tuple[int, int]] = []
        for index, data in enumerate(self.honest.replayed(self.step).entries):
            body = read_body(TraceEntry.from_bytes(data, where="own entry"))
            if not isinstance(body, OperatorBody) or body.effects is None:
                continue
            if "float32" in str(body.effects.results):
                written = sum(write.size for write in body.effects.writes)
                found.append((body.operands.num_bytes + written, index))
        return [index for _, index in sorted(found)]

    def _run(self, leaves: Sequence[Leaf]) -> Any:
        return _Run(
            header=self.header, leaves=leaves, checkpoint_steps=(self.step - 1,), state=self._state
        )

    def liar(self) -> ReplayedClaims:
        return ReplayedClaims(self.job, self._run(self.leaves), _encoded(self.false_leaves))

    def _chain(self, steps: int, before: Digest, real: dict[str, Any]) -> list[Leaf]:
        made: list[Leaf] = []
        previous = self.header.digest
        for step in range(steps + 1):
            state = before if step == self.step - 1 else digest("tensor", str(step).encode())
            fields: dict[str, Any] = {"state": state, "batch": state, "loss": 1.0}
            fields = real if step == self.step else fields
            fields = {**fields, "batch": None, "loss": None} if step == 0 else fields
            made.append(Leaf(step=step, rounding=None, previous=previous, **fields))
            previous = made[-1].digest
        return made


def _rows(model: str, steps: int) -> Generator[Row]:
    stage = _Stage(model, steps)
    quantiles = _QUANTILES if steps == min(_LENGTHS) else (0.5,)
    for quantile in quantiles:
        place = round(quantile * (len(stage.operators) - 1))
        yield _row(model, steps, stage, stage.operators[place], quantile)


def _row(model: str, steps: int, stage: _Stage, index: int, quantile: float) -> Row:
    seconds = dict.fromkeys(Role, 0.0)
    referee, challenge = _opened(stage, seconds)
    terms = open_challenge(challenge, referee=stage.keys[Role.REFEREE].public_key)
    replays: dict[Role, int] = dict.fromkeys(PARTIES, 0)
    claims = {Role.TRAINER: stage.liar(), Role.CHALLENGER: stage.honest}
    parties = {
        role: DisputeParty(
            role=role,
            signer=stage.keys[role],
            terms=terms,
            claims=claims[role],
            journal=Journal({}),
        )
        for role in PARTIES
    }
    while referee.verdict is None:
        for role in PARTIES:
            question = referee.question(role)
            if question is None:
                continue
            with _counted(replays, role), _fault(index if role is Role.TRAINER else None):
                answer = _timed(seconds, role, parties[role].answer, question)
            _timed(seconds, Role.REFEREE, referee.receive, answer, 0.0)
    verdict = referee.verdict
    assert (verdict.loser.value, verdict.index) == ("trainer", index), verdict.reason
    bundle = referee.bundle()
    entries = stage.honest.replayed(stage.step).entries
    body = TraceEntry.from_bytes(entries[index], where="own entry").body
    again, memory = _alone(model, steps, bundle)
    return {
        "run": f"{model} {steps} steps, operators' quantile {quantile}",
        "operator": body["operator"],
        "rounds": verdict.rounds,
        "bound": math.ceil(math.log2(steps)) + math.ceil(math.log2(len(entries))) + 4,
        "messages": verdict.messages,
        "MB sent": verdict.bytes / 1e6,
        "step s": stage.step_seconds,
        "trainer s": seconds[Role.TRAINER],
        "trainer's replays": replays[Role.TRAINER],
        "challenger s": seconds[Role.CHALLENGER],
        "referee ms": 1e3 * seconds[Role.REFEREE],
        "referee / step": seconds[Role.REFEREE] / stage.step_seconds,
        "checked again ms": 1e3 * again,
        "referee peak MB": memory / 1e6,
        "evidence kB": len(bundle) / 1e3,
    }


def _opened(stage: _Stage, seconds: dict[Role, float]) -> tuple[Referee, bytes]:
    head = Head(
        run=stage.header.digest, size=len(stage.false_leaves), previous=None,
        root=merkle.root(_encoded(stage.false_leaves)), segment=bytes(32), checkpoint=bytes(32),
    )  # fmt: skip
    signature = stage.keys[Role.TRAINER].sign(Head.type_name, head.to_bytes())
    challenge = make_challenge(
        signer=stage.keys[Role.CHALLENGER], header=stage.header.to_bytes(),
        head=SignedHead(head=head, signature=signature).to_bytes(), nonce=bytes(16),
        referee=stage.keys[Role.REFEREE].public_key,
        leaves=Entries(_encoded(stage.leaves[: stage.step + 1])),
    )  # fmt: skip
    referee = Referee(
        signer=stage.keys[Role.REFEREE], judge=OperatorJudge(stage.job), deadlines=Deadlines(),
        now=0.0,
    )  # fmt: skip
    _timed(seconds, Role.REFEREE, referee.receive, challenge, 0.0)
    return referee, challenge


def _timed(seconds: dict[Role, float], role: Role, act: Any, *args: Any) -> Any:
    start = perf_counter()
    result = act(*args)
    seconds[role] += perf_counter() - start
    return result


@contextmanager
def _fault(index: int | None) -> Generator[None]:
    """One bit of a result is wrong, of the operator of that entry."""
    own = Tracer._own  # pyright: ignore[reportPrivateUsage]

    def flip(tracer: Tracer, result: Tensor) -> Tensor:
        result = own(tracer, result)
        is_there = tracer._index == index  # pyright: ignore[reportPrivateUsage]
        if is_there and result.dtype == torch.float32 and result.numel():
            result.reshape(-1).view(torch.int32)[result.numel() // 2] ^= 1
        return result

    with mock.patch.object(Tracer, "_own", flip):
        yield


@contextmanager
def _counted(replays: dict[Role, int], role: Role) -> Generator[None]:
    """Count the steps that a party computes."""
    from veritrain.replay.trace import tracer

    def step(*args: Any) -> float:
        replays[role] += 1
        return run_step(*args)

    with mock.patch.object(tracer, "run_step", step):
        yield


def _alone(model: str, steps: int, bundle: bytes) -> tuple[float, int]:
    """Seconds and bytes of a process that checks the bundle."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bundle"
        file.write_bytes(bundle)
        threads = str(torch.get_num_threads())
        command = [
            sys.executable,
            "-m",
            "benchmarks.dispute",
            model,
            str(steps),
            str(file),
            threads,
        ]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    seconds, memory = done.stdout.split()[-2:]
    return float(seconds), int(memory)


def _header(job: Job, batches: Batches, signer: Signer) -> Header:
    return Header(
        numerics=job.numerics, numerics_version=2, job=commitment(job), dataset_root=bytes(32),
        dataset_count=batches.count, environment={}, public_key=signer.public_key,
    )  # fmt: skip


def _encoded(leaves: Sequence[Leaf]) -> list[bytes]:
    return [leaf.to_bytes() for leaf in leaves]


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[4]))
    data = Path(sys.argv[3]).read_bytes()
    judge = OperatorJudge(MODELS[sys.argv[1]].job("exact", int(sys.argv[2])))
    from veritrain.protocols.dispute.dispute_evidence import Bundle

    referee_key = Bundle.from_bytes(data, where="bundle").evidence.referee
    begin = perf_counter()
    check_bundle(data, judge=judge, referees=[referee_key])
    print(perf_counter() - begin, peak())
