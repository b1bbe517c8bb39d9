"""Language, recurrent and recommendation models: one job for each family."""

from __future__ import annotations

import veritrain as vt


def jobs(steps: int, numerics: str) -> dict[str, vt.Job]:
    """Every job of this module by name."""
    return {}
