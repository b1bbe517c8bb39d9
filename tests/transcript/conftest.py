from __future__ import annotations

import pytest
from run_builder import Files, make_run


@pytest.fixture(scope="session")
def honest_run() -> Files:
    """The files of a small honest run; copy before changing."""
    return make_run()
