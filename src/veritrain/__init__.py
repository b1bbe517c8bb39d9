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
    from veritrain.job import Job, load_job
    from veritrain.training.callbacks import StepReport
    from veritrain.training.check import check
    from veritrain.training.check_report import CheckReport
    from veritrain.training.recorder import Recorder, train
    from veritrain.transcript.signing import Signer
    from veritrain.verify.replay import audit
    from veritrain.verify.report import AuditReport, Verdict
    from veritrain.weights import load_model, load_state

_HOMES = {
    "AuditReport": "veritrain.verify.report",
    "CheckReport": "veritrain.training.check_report",
    "Job": "veritrain.job",
    "Recorder": "veritrain.training.recorder",
    "Signer": "veritrain.transcript.signing",
    "StepReport": "veritrain.training.callbacks",
    "Verdict": "veritrain.verify.report",
    "audit": "veritrain.verify.replay",
    "check": "veritrain.training.check",
    "load_job": "veritrain.job",
    "load_model": "veritrain.weights",
    "load_state": "veritrain.weights",
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
