"""Names that arguments had once: they still work, and say the new one."""

from __future__ import annotations

import warnings


def processes_of(processes: int, workers: int | None) -> int:
    """The argument `processes`, which was called `workers` up to version 0.1."""
    if workers is None:
        return processes
    warnings.warn("`workers` is called `processes` now", DeprecationWarning, stacklevel=3)
    return workers
