"""Enter a profile after PyTorch's threads, and our own, were started while subnormals were flushed:
run by test_profile.py with 2 threads."""

from __future__ import annotations

import numpy as np
import torch

from veritrain.errors import NumericsError
from veritrain.numerics import resolve
from veritrain.numerics.platform import parallel


def smallest_halves(out: np.ndarray, start: int, stop: int) -> None:
    out[start:stop] = np.full(stop - start, 2.0**-126, np.float32) * np.float32(0.5)


if __name__ == "__main__":
    halves = np.zeros(2 * parallel.GRAIN, np.float32)
    torch.set_flush_denormal(True)
    torch.ones(1_000_000).add(1)  # PyTorch's threads start here
    parallel.run(smallest_halves, len(halves), halves)
    torch.set_flush_denormal(False)
    print(halves[-1] > 0)  # computed by a thread of our own
    try:
        with resolve("exact").active(seed=0, purpose="test", step=1):
            print("entered")
    except NumericsError as error:
        print(error)
