"""The environment and import path that this process was started with.

They decide where machine code and modules come from. A job may change `os.environ` and `sys.path`,
and nobody who reads its sources would take that for code; so what counts is what stood there before
any job ran. `job` imports this module first.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager

ENVIRONMENT: Mapping[str, str] = dict(os.environ)
PATH = tuple(sys.path)

_SAFE_PATH = "PYTHONSAFEPATH"
# Where Python, the system's loader, numba, Triton and PyTorch's extensions look for code.
_WHERE_CODE_IS = (
    "PYTHON", "LD_", "DYLD_", "NUMBA_", "TRITON_", "TORCH_EXTENSIONS", "TORCHINDUCTOR", "XDG_",
    "HOME", "PATH", "VIRTUAL_ENV", "OMP_", "MKL_",
)  # fmt: skip


@contextmanager
def as_started() -> Generator[None]:
    """Within it, processes that start look for code where this one did at first, and not in the
    current folder, which `python -c` would."""
    names = os.environ.keys() | ENVIRONMENT.keys() | {_SAFE_PATH}
    kept = {name: os.environ.get(name) for name in names if name.startswith(_WHERE_CODE_IS)}
    path = list(sys.path)
    _set({**{name: ENVIRONMENT.get(name) for name in kept}, _SAFE_PATH: "1"})
    sys.path[:] = PATH  # multiprocessing hands it on
    try:
        yield
    finally:
        sys.path[:] = path
        _set(kept)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
