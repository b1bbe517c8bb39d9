"""Veritrain: PyTorch training that others can check bit for bit.

The names below are the public surface. They load on first use: `import veritrain` itself does not
load PyTorch, so that a command line answers at once.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from veritrain.errors import (
    InconclusiveError,
    JobError,
    NumericsError,
    TranscriptError,
    UnsupportedOperatorError,
    UsageError,
    VerificationError,
    VeritrainError,
)

__version__ = "0.2.0"

if TYPE_CHECKING:
    from veritrain.job.job import Job
    from veritrain.job.load import load_job
    from veritrain.models.weights import load_model, load_state
    from veritrain.replay.auditor import audit
    from veritrain.replay.report import AuditReport, Verdict
    from veritrain.training.callbacks import StepReport
    from veritrain.training.check_report import CheckReport
    from veritrain.training.checker import check
    from veritrain.training.recorder import Recorder, train
    from veritrain.transcript.signing import Signer

_HOMES = {
    "AuditReport": "veritrain.replay.report",
    "CheckReport": "veritrain.training.check_report",
    "Job": "veritrain.job.job",
    "Recorder": "veritrain.training.recorder",
    "Signer": "veritrain.transcript.signing",
    "StepReport": "veritrain.training.callbacks",
    "Verdict": "veritrain.replay.report",
    "audit": "veritrain.replay.auditor",
    "check": "veritrain.training.checker",
    "load_job": "veritrain.job.load",
    "load_model": "veritrain.models.weights",
    "load_state": "veritrain.models.weights",
    "train": "veritrain.training.recorder",
}

__all__ = [
    "AuditReport",
    "CheckReport",
    "InconclusiveError",
    "Job",
    "JobError",
    "NumericsError",
    "Recorder",
    "Signer",
    "StepReport",
    "TranscriptError",
    "UnsupportedOperatorError",
    "UsageError",
    "Verdict",
    "VerificationError",
    "VeritrainError",
    "audit",
    "check",
    "load_job",
    "load_model",
    "load_state",
    "train",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'veritrain' has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)
