"""A job: a small convolutional net with batch norm and dropout on real handwritten digits.

    veritrain train examples/digits.py --out runs/digits
    veritrain audit runs/digits --job examples/digits.py

The 1,797 images of 8 x 8 pixels come with scikit-learn; the last 297 are held out.
"""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler
from torch.utils.data import TensorDataset

import veritrain as vt

HELD_OUT = 297
STEPS = 300


def digits() -> tuple[TensorDataset, TensorDataset]:
    """Training and held-out images (float32 [N, 1, 8, 8], 0 to 1) with their labels."""
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images.astype(np.float32) / 16).reshape(-1, 1, 8, 8)
    y = torch.from_numpy(labels.astype(np.int64))
    return (
        TensorDataset(x[:-HELD_OUT], y[:-HELD_OUT]),
        TensorDataset(x[-HELD_OUT:], y[-HELD_OUT:]),
    )


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.25),
        nn.Linear(32 * 4 * 4, 10),
    )


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def optimizer(model: nn.Module) -> Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=3e-3)


def scheduler(optimizer: Optimizer) -> LRScheduler:
    return CosineAnnealingLR(optimizer, STEPS)


def accuracy(model: nn.Module) -> float:
    """Share of the held-out images that the model reads right."""
    images, labels = digits()[1].tensors
    model.eval()
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def job() -> vt.Job:
    return vt.Job(
        model=model,
        dataset=digits()[0],
        loss=loss,
        optimizer=optimizer,
        scheduler=scheduler,
        batch_size=64,
        steps=STEPS,
        seed=7,
        checkpoint_every=50,
    )
