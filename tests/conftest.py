"""What holds for every test, beside whichever others it runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
from hypothesis import settings

# `make test` starts one process of tests for each core. With several threads each, they would only
# wait for each other. PyTorch reads these variables when it is loaded, which no test has done yet.
# Processes that tests start inherit them. Tests of threads set their own number.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")

# What a shell runs in the background ignores Ctrl-C, and so do all processes that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files that take longest are begun first: no process of tests waits for another one at the end.
# (`make test` asks for this order with `--no-loadscope-reorder`.)
LONGEST = (
    "test_docs", "test_loading", "test_machines", "test_machines_logged", "test_trace",
    "test_judge", "test_device", "test_calibrate", "test_dispute_processes", "test_audit",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


# Time is shared with neighbours: how long an example takes says nothing about the product.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")


@pytest.fixture(scope="session", autouse=True)
def own_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The default key lies in a folder of this run: the user's own is neither used nor made."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERITRAIN_KEY", str(tmp_path_factory.mktemp("key") / "trainer.key"))
        yield
