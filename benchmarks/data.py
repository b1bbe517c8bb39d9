"""Real data for benchmarks that train: CIFAR-10 and Shakespeare where given, else what comes with
scikit-learn.

A folder given by `--data` may hold `cifar10.npz` (JPEG images: `train_jpeg` uint8, `train_offsets`
int64, `train_labels`) and `shakespeare.txt`. Without them: handwritten digits, and a piece of
PyTorch's source.
"""

from __future__ import annotations

import inspect
import io
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

_IMAGES = 6_000
_TEST_IMAGES = 1_000
_TEST_SEQUENCES = 64


@dataclass(frozen=True)
class Data:
    """What a model is trained on, and what its loss is measured on afterwards."""

    name: str
    train: TensorDataset  # (inputs, targets)
    test: tuple[Tensor, Tensor]


def images(folder: Path | None) -> Data:
    """Images float32 (N, 3, 32, 32) with ten classes."""
    if folder is not None and (folder / "cifar10.npz").exists():
        return _cifar(folder / "cifar10.npz")
    pixels, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(np.asarray(pixels, np.float32)).view(-1, 1, 8, 8) / 16
    large = small.repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1).contiguous()
    return _split("digits of scikit-learn", large, torch.from_numpy(labels).long(), 300)


def _cifar(path: Path) -> Data:
    from PIL import Image

    with np.load(path) as stored:
        jpeg, offsets = stored["train_jpeg"], stored["train_offsets"]
        labels = torch.from_numpy(stored["train_labels"][:_IMAGES].astype(np.int64))
    decoded = [
        np.asarray(Image.open(io.BytesIO(jpeg[start:stop].tobytes())))
        for start, stop in pairwise(offsets[: _IMAGES + 1])
    ]
    pixels = torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).float() / 128 - 1
    return _split("CIFAR-10 (JPEG)", pixels.contiguous(), labels, _TEST_IMAGES)


def text(folder: Path | None, length: int) -> Data:
    """Sequences of characters and their successors, int64 (N, length) each."""
    if folder is not None and (folder / "shakespeare.txt").exists():
        name, characters = "Shakespeare", (folder / "shakespeare.txt").read_bytes()
    else:
        name, characters = (
            "source of nn.Transformer",
            inspect.getsource(nn.Transformer).encode() * 8,
        )
    _, tokens = np.unique(np.frombuffer(characters, np.uint8), return_inverse=True)
    count = len(tokens) // (length + 1)
    rows = torch.from_numpy(tokens[: count * (length + 1)].astype(np.int64)).view(count, -1)
    return _split(name, rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), _TEST_SEQUENCES)


def _split(name: str, inputs: Tensor, targets: Tensor, tests: int) -> Data:
    train = TensorDataset(inputs[tests:], targets[tests:])
    return Data(name, train, (inputs[:tests], targets[:tests]))
