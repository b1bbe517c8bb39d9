"""The weights of a run: what it stores at its checkpoints, read for use.

What is read is verified on the way: every signature, the chain from header to leaves, and the
digest of each tensor against the leaf of its step. So the tensors are the ones that the run's key
signed. Whether the job was followed to get there is for `veritrain.audit` to say. Of the run
nothing is executed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor, nn

from veritrain.encoding import Digest
from veritrain.errors import TranscriptError, UsageError, VerificationError, VeritrainError
from veritrain.job.job import Job
from veritrain.job.state import capture, require_fit, restore
from veritrain.job.step import Program
from veritrain.transcript import TensorEntry, Transcript, state_entries, state_root
from veritrain.transcript.records import check_equal
from veritrain.transcript.signing import fingerprint, is_trusted

MODEL = "model/"  # what the names of parameters and buffers begin with in a state
_SHOWN_STEPS = 12


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The state of one checkpoint, and what vouches for it."""

    step: int
    tensors: dict[str, Tensor] = field(repr=False)
    run: Digest  # of the header
    root: Digest  # of the leaves up to this step, as signed
    key: str  # fingerprint of the key that signed


def load_state(
    run: str | os.PathLike[str],
    step: int | None = None,
    *,
    part: Literal["model", "all"] = "model",
    trusted_key: bytes | str | None = None,
) -> dict[str, Tensor]:
    """The tensors that a run stores at a checkpoint: new CPU tensors, verified as they are read.

    Args:
        run: local path, HTTP address or fsspec URL.
        step: of a checkpoint; None for the last one.
        part: "model" gives parameters and buffers under their own names, for
            `model.load_state_dict`: also buffers that are not persistent (`strict=False` ignores
            them), and tied parameters under each of their names. "all" gives the whole state, with
            the optimiser's tensors, under the names of the format ("model/fc.weight").
        trusted_key: the trainer's Ed25519 public key, 32 bytes, or its fingerprint; None for any.

    Raises:
        UsageError: the state of this step is not stored (says which are), or arguments are wrong.
        TranscriptError: the bytes are not a well-formed run.
        VerificationError: they are not what the run's key signed, or that key is another one.
    """
    if part not in ("model", "all"):
        raise UsageError(f"part: expected 'model' or 'all', got {part!r}")
    stored = read(run, step, trusted_key=trusted_key, prefix=MODEL if part == "model" else "")
    if part == "all":
        return stored.tensors
    return {name.removeprefix(MODEL): tensor for name, tensor in stored.tensors.items()}


def load_model(
    run: str | os.PathLike[str],
    job: Job,
    step: int | None = None,
    *,
    trusted_key: bytes | str | None = None,
) -> nn.Module:
    """The job's model with the weights that a run stores at a checkpoint, in evaluation mode.

    The job is executed. Signatures, chain and stored state are verified as by `load_state`, and the
    state of the program that was built is hashed again. That `job` is the run's job is not checked
    beyond that: its model and optimiser must have tensors of these names, shapes and dtypes.

    The model lies on the CPU and computes with PyTorch's own kernels.

    Args:
        run: local path, HTTP address or fsspec URL.
        job: of the run.
        step: of a checkpoint; None for the last one.
        trusted_key: see `load_state`.

    Raises:
        UsageError, TranscriptError, VerificationError: as `load_state`, or the job does not fit.
        JobError: the job cannot be built.
    """
    return build(run, job, step, trusted_key=trusted_key)[0]


def read(
    run: str | os.PathLike[str],
    step: int | None,
    *,
    trusted_key: bytes | str | None,
    prefix: str,
) -> Stored:
    """Those tensors of a stored state whose names begin with `prefix`; see `load_state`."""
    transcript = _verified(run, trusted_key)
    found = _stored_step(transcript, step)

    def room(entries: tuple[TensorEntry, ...]) -> None:
        _require_room(entries, prefix)

    return _stored(transcript, found, transcript.load_state(found, check=room, prefix=prefix))


def _require_room(entries: Iterable[TensorEntry], prefix: str) -> None:
    """Check, before memory is taken, that the tensors fit into this machine: gigabytes of zeros
    take no room in a sparse file.

    Raises:
        UsageError: they do not.
    """
    needed = sum(entry.num_bytes for entry in entries if entry.name.startswith(prefix))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UsageError(
            f"the stored tensors take {needed:,} bytes of memory, and this machine has {memory:,}"
        )


def build(
    run: str | os.PathLike[str],
    job: Job,
    step: int | None,
    *,
    trusted_key: bytes | str | None,
) -> tuple[nn.Module, Stored]:
    """See `load_model`; with the whole state that the model's tensors are of."""
    transcript = _verified(run, trusted_key)
    found = _stored_step(transcript, step)
    program = Program.build(job)

    def fit(entries: tuple[TensorEntry, ...]) -> None:
        try:
            require_fit(program, entries)
        except TranscriptError as error:
            raise _misfit(found, error) from None

    state = transcript.load_state(found, check=fit)
    try:
        restore(program, state)
    except TranscriptError as error:
        raise _misfit(found, error) from None
    except VeritrainError:
        raise
    except Exception as error:  # stored values that the job's optimiser cannot live with
        raise _misfit(found, error) from error
    got = state_root(state_entries(capture(program)))
    check_equal(f"step {found}: state of the program", transcript.leaves[found].state, got)
    return program.model.eval(), _stored(transcript, found, state)


def _verified(run: str | os.PathLike[str], trusted_key: bytes | str | None) -> Transcript:
    transcript = Transcript.open(run)
    if not transcript.heads:
        raise UsageError(f"{transcript.location}: no state is stored yet")
    key = transcript.header.public_key
    trusted = trusted_key.lower() if isinstance(trusted_key, str) else trusted_key
    if trusted is not None and not is_trusted(key, [trusted]):
        expected = trusted if isinstance(trusted, str) else fingerprint(trusted)
        raise VerificationError(
            f"the run is signed by another key: expected {expected}, got {fingerprint(key)}"
        )
    transcript.verify_signatures()
    transcript.verify_chain()
    return transcript


def _stored(transcript: Transcript, step: int, tensors: dict[str, Tensor]) -> Stored:
    place = transcript.checkpoint_steps.index(step)
    return Stored(
        step=step,
        tensors=tensors,
        run=transcript.header.digest,
        root=transcript.heads[place].head.root,
        key=fingerprint(transcript.header.public_key),
    )


def _stored_step(transcript: Transcript, step: int | None) -> int:
    steps = transcript.checkpoint_steps
    if step is None:
        return steps[-1]
    if type(step) is not int:
        raise UsageError(f"step: expected a number, got {step!r}")
    if step not in steps:
        raise UsageError(f"step {step}: its state is not stored; stored are {_listed(steps, step)}")
    return step


def _listed(steps: Sequence[int], wanted: int) -> str:
    """The steps, or those around `wanted` where they are many."""
    near = sorted(sorted(steps, key=lambda step: abs(step - wanted))[:_SHOWN_STEPS])
    text = ", ".join(map(str, near))
    return text if len(near) == len(steps) else f"{len(steps)} steps, among them {text}"


def _misfit(step: int, error: Exception) -> UsageError:
    return UsageError(
        f"the job does not fit the state of step {step}: {error}; is it the job of this run? "
        "`veritrain audit` names what differs"
    )
