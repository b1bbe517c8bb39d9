"""An audit of a run whose stored states are larger than the job's hashes nothing of them."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import veritrain as vt
from tests import jobs
from veritrain.encoding import digest
from veritrain.job.state import capture, restore
from veritrain.job.step import Program
from veritrain.transcript import (
    Signer,
    TensorEntry,
    Transcript,
    TranscriptWriter,
    files,
    state_entries,
    state_root,
)
from veritrain.transcript import reader as reader_module
from veritrain.transcript.merkle import Frontier
from veritrain.transcript.packs import pack_layout
from veritrain.transcript.records import Checkpoint, Head, SignedHead, encode_segment

KEY = Signer.generate()
SIZE = 1 << 22  # bytes of zeros in a file that takes none


def forge(run: Path, at: int, change) -> None:
    """Sign the run again with another stored state after step `at`, its new contents all zeros."""
    transcript = Transcript.open(run)
    frontier, previous_head, previous = Frontier(), None, transcript.header.digest
    begin = 0
    for step in transcript.checkpoint_steps:
        checkpoint = transcript.checkpoint(step)
        if step == at:
            tensors = tuple(sorted(change(checkpoint.tensors), key=lambda entry: entry.name))
            known = dict(zip(checkpoint.tensors, checkpoint.packs, strict=True))
            packs = tuple(known.get(entry, step) for entry in tensors)
            checkpoint = Checkpoint(step=step, tensors=tensors, packs=packs)
            layout = pack_layout(checkpoint.stored_sizes())
            (run / files.manifest_path(step)).write_bytes(checkpoint.to_bytes())
            (run / files.pack_path(step)).write_bytes(layout.header)
            os.truncate(run / files.pack_path(step), layout.total_bytes)
        leaves = []
        for leaf in transcript.leaves[begin : step + 1]:
            state = state_root(checkpoint.tensors) if leaf.step == step == at else leaf.state
            leaves.append(replace(leaf, previous=previous, state=state))
            previous = leaves[-1].digest
            frontier.append(leaves[-1].to_bytes())
        begin = step + 1
        segment = encode_segment(leaves)
        (run / files.segment_path(step)).write_bytes(segment)
        head = Head(
            run=transcript.header.digest, size=step + 1, root=frontier.root(),
            segment=digest("segment", segment), checkpoint=checkpoint.digest,
            previous=previous_head,
        )  # fmt: skip
        signed = SignedHead(head=head, signature=KEY.sign("head", head.to_bytes()))
        (run / files.signature_path(step)).write_bytes(signed.to_bytes())
        previous_head = head.digest


def zeros(name: str, shape: tuple[int, ...] = (SIZE,), dtype: str = "uint8") -> TensorEntry:
    blank = TensorEntry(name=name, dtype=dtype, shape=shape, digest=bytes(32))
    return replace(blank, digest=digest("tensor", bytes(blank.num_bytes)))


def replaced(entry: TensorEntry):
    return lambda tensors: [item for item in tensors if item.name != entry.name] + [entry]


LIES = {
    "a tensor that no job has": replaced(zeros("model/x")),
    "a larger parameter": replaced(zeros("model/first.weight", (SIZE // 4,), "float32")),
    "a larger moment": replaced(zeros("optimizer/first.weight/exp_avg", (SIZE // 4,), "float32")),
    "a moment of other shape": replaced(zeros("optimizer/first.weight/exp_avg", (4,), "float32")),
    "many steps": replaced(zeros("optimizer/first.weight/step", (48,), "float32")),
    "another key of the optimiser": replaced(zeros("optimizer/first.weight/more")),
    "a longer text": replaced(zeros("optimizer/hyper")),
    "a tensor less": lambda tensors: [t for t in tensors if t.name != "model/first.weight"],
}


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Places of the contents that the reader hashed."""
    places: list[str] = []
    check = reader_module._check_content

    def counting(file, offset, entry, place):
        places.append(f"{place.pack}")
        check(file, offset, entry, place)

    monkeypatch.setattr(reader_module, "_check_content", counting)
    return places


@pytest.mark.parametrize("steps", [None, (1, 2)])
@pytest.mark.parametrize("lie", LIES)
def test_a_state_that_the_job_cannot_have_is_rejected_unhashed(
    tmp_path: Path, hashed: list[str], lie: str, steps: tuple[int, int] | None
) -> None:
    vt.train(jobs.make(), tmp_path / "run", signer=KEY)
    forge(tmp_path / "run", 8, LIES[lie])
    report = vt.audit(tmp_path / "run", jobs.make(), steps=steps)
    (failed,) = (check.name for check in report.checks if check.outcome.value == "failed")
    assert failed == "checkpoints"
    assert "step 8: the stored state is not one that the job can have" in report.reason
    assert "0" in hashed
    assert "8" not in hashed


def test_states_after_the_jobs_last_step_are_not_hashed(tmp_path: Path, hashed: list[str]) -> None:
    vt.train(jobs.make(), tmp_path / "run", signer=KEY)
    run = Transcript.open(tmp_path / "run")
    states = {step: run.load_state(step) for step in run.checkpoint_steps}
    hashed.clear()
    states[12] = {**states[10], "model/first.weight": states[8]["model/first.weight"] + 1}
    writer = TranscriptWriter.create(tmp_path / "longer", run.header, KEY)
    for step in range(13):
        leaf = run.leaves[min(step, 10)]
        entries = state_entries(states[step]) if step in states else ()
        state = state_root(entries) if step == 12 else leaf.state
        writer.append(state=state, batch=leaf.batch, loss=leaf.loss)
        if entries:
            writer.commit(states[step], entries)
    report = vt.audit(tmp_path / "longer", jobs.make())
    assert report.verdict is vt.Verdict.REJECTED
    assert "10" in hashed
    assert "12" not in hashed


@pytest.mark.parametrize("key", ["exp_avg", "exp_avg_sq", "step"])
def test_a_short_tensor_of_the_optimiser_is_refused_where_it_is_restored(key: str) -> None:
    """Compiled updates write as much as the parameter has, whatever there is."""
    job = jobs.make()
    program = Program.build(job)
    state = dict(capture(program))
    name = f"optimizer/first.weight/{key}"
    state[name] = torch.zeros(2)
    with pytest.raises(vt.TranscriptError, match=f"{name}': expected"):
        restore(Program.build(job), state)
