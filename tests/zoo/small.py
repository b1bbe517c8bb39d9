"""Four small models with what most training uses: batch norm, dropout, residual strides, attention,
momentum and Nesterov, Adam and AdamW, parameter groups, schedulers, accumulation, clipping, dict
and tuple batches.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import veritrain as vt
from benchmarks.models import Block


class Images(Dataset):
    """Generated images with a class that a small net can learn: (image, label)."""

    def __init__(
        self, count: int = 256, channels: int = 1, size: int = 8, classes: int = 10
    ) -> None:
        generator = np.random.Generator(np.random.Philox(key=5))
        self.labels = generator.integers(0, classes, count)
        patterns = generator.integers(-8, 9, (classes, channels, size, size))
        noise = generator.integers(-8, 9, (count, channels, size, size))
        self.images = ((patterns[self.labels] + noise) / 16).astype(np.float32)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.images[index]), int(self.labels[index])


class Flipped(Images):
    """The same with a random flip and random noise: keyed augmentation."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
        return image + torch.randn(image.shape) * 0.05, label


class Tokens(Dataset):
    """Sequences with a rule (next token = token + step): dict records."""

    def __init__(self, count: int = 256, length: int = 16, vocabulary: int = 32) -> None:
        generator = np.random.Generator(np.random.Philox(key=6))
        starts = generator.integers(0, vocabulary, (count, 1))
        steps = generator.integers(1, 4, (count, 1))
        self.tokens = (starts + steps * np.arange(length + 1)) % vocabulary

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        row = torch.from_numpy(self.tokens[index])
        return {"inputs": row[:-1], "targets": row[1:]}


def image_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["inputs"]).flatten(0, 1), batch["targets"].flatten())


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.25), nn.Linear(128, 10),
    )  # fmt: skip


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.SiLU(),
        nn.Linear(64, 32), nn.Sigmoid(), nn.Linear(32, 10),
    )  # fmt: skip


def resnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1), Block(8, 8, 1), Block(8, 16, 2), Block(16, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


class Transformer(nn.Module):
    def __init__(self, vocabulary: int = 32, width: int = 32, length: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight  # tied

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.tokens(tokens) + self.places(torch.arange(length))
        return self.head(self.encoder(x, mask=mask, is_causal=True))


def decayed_groups(model: nn.Module) -> list[dict[str, object]]:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]


def jobs(steps: int, numerics: str) -> dict[str, vt.Job]:
    common = {"steps": steps, "seed": 7, "numerics": numerics, "checkpoint_every": 8}
    return {
        "convnet-sgd": vt.Job(
            model=convnet, dataset=Flipped(), loss=image_loss, batch_size=32,
            optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9),
            scheduler=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, steps),
            **common,
        ),
        "perceptron-adam": vt.Job(
            model=perceptron, dataset=Images(), loss=image_loss, batch_size=32, accumulate=2,
            optimizer=lambda m: torch.optim.Adam(m.parameters(), lr=2e-3, weight_decay=1e-3),
            **common,
        ),
        "resnet-nesterov": vt.Job(
            model=resnet, dataset=Images(channels=3, size=16), loss=image_loss, batch_size=16,
            optimizer=lambda m: torch.optim.SGD(
                m.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
            ),
            scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=steps + 1),
            **common,
        ),
        "transformer-adamw": vt.Job(
            model=Transformer, dataset=Tokens(), loss=token_loss, batch_size=16, clip_norm=1.0,
            optimizer=lambda m: torch.optim.AdamW(decayed_groups(m), lr=2e-3),
            scheduler=lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1, total_iters=10),
            **common,
        ),
    }  # fmt: skip
