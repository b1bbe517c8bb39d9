"""The model families that `exact` numerics promises, as small jobs on generated data: ordinary
PyTorch.

Each is small enough that a few steps take seconds, and has what its family is known for.
"""

from __future__ import annotations

import veritrain as vt
from tests.zoo import sequence, small, vision


def jobs(steps: int = 20, numerics: str = "exact") -> dict[str, vt.Job]:
    """Every family's job by name."""
    rooms = (small, sequence, vision)
    return {name: job for room in rooms for name, job in room.jobs(steps, numerics).items()}
