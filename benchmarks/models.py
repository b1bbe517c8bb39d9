"""The benchmark models as jobs: the demo's net, a ResNet-18 of a quarter width, a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import veritrain as vt
from veritrain.job.job import MapDataset


class Images(Dataset[tuple[Tensor, int]]):
    """Generated images, float32 (channels, size, size), and a label."""

    def __init__(self, count: int, channels: int, size: int) -> None:
        generator = np.random.default_rng(1)
        self.images = generator.random((count, channels, size, size), np.float32)
        self.labels = generator.integers(0, 10, count)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.images[index]), int(self.labels[index])


class Tokens(Dataset[tuple[Tensor, Tensor]]):
    """Generated sequences of `length` tokens and their successors."""

    def __init__(self, count: int, length: int, vocabulary: int) -> None:
        generator = np.random.default_rng(2)
        self.tokens = generator.integers(0, vocabulary, (count, length + 1))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        row = torch.from_numpy(self.tokens[index])
        return row[:-1], row[1:]


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.short = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.short(x))


class Bottleneck(nn.Module):
    """A 1x1, a 3x3 and a widening 1x1 convolution with batch norm, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        inner = outputs // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(inner)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outputs)
        self.short = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        return F.relu(self.norm3(self.conv3(y)) + self.short(x))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def resnet(width: int = 16) -> nn.Module:
    """ResNet-18 for 32x32 images; width 64 is the usual one."""
    return _residual(Block, width, width, (2, 2, 2, 2))


def resnet50(width: int = 64) -> nn.Module:
    """ResNet-50 for 32x32 images; width 64 is the usual one."""
    return _residual(Bottleneck, width, 4 * width, (3, 4, 6, 3))


def _residual(
    block: Callable[[int, int, int], nn.Module], width: int, outputs: int, depths: Sequence[int]
) -> nn.Module:
    """A stem of `width` channels, stages of `depths` blocks (the first of `outputs` channels, each
    next one of twice as many on half the size), a classifier."""
    layers: list[nn.Module] = [
        nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    ]  # fmt: skip
    inputs = width
    for stage, depth in enumerate(depths):
        for place in range(depth):
            layers.append(block(inputs, outputs, 2 if stage and not place else 1))
            inputs = outputs
        outputs *= 2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


class Transformer(nn.Module):
    """Encoder with a causal mask: 4 layers, width 128, tied embedding."""

    def __init__(self, vocabulary: int = 512, width: int = 128, length: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(length, width)
        nn.init.normal_(self.tokens.weight, std=0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 4 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        x = self.tokens(tokens) + self.places(torch.arange(length))
        return self.head(self.encoder(x, mask=mask, is_causal=True))


def digits_net() -> nn.Module:
    """The demo's net: two convolutions with batch norm, dropout, two linear layers."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.25),
        nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


def image_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of image classes."""
    images, labels = batch
    return F.cross_entropy(model(images), labels)


def token_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy of next tokens."""
    tokens, targets = batch
    return F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten())


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum."""
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    """AdamW with its usual settings."""
    return torch.optim.AdamW(model.parameters(), lr=3e-4)


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A model with its data, as a job in any numerics."""

    model: Callable[[], nn.Module]
    dataset: Callable[[], MapDataset]
    loss: Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    batch_size: int

    def job(self, numerics: str, steps: int, checkpoint_every: int = 100) -> vt.Job:
        """The job of this workload."""
        return vt.Job(
            model=self.model, dataset=self.dataset, loss=self.loss, optimizer=self.optimizer,
            batch_size=self.batch_size, steps=steps, seed=1, numerics=numerics,
            checkpoint_every=checkpoint_every,
        )  # fmt: skip


WORKLOADS = {
    "digits": Workload(
        model=digits_net, dataset=lambda: Images(1797, 1, 8), loss=image_loss, optimizer=sgd,
        batch_size=64,
    ),
    "resnet": Workload(
        model=resnet, dataset=lambda: Images(512, 3, 32), loss=image_loss, optimizer=sgd,
        batch_size=64,
    ),
    "transformer": Workload(
        model=Transformer, dataset=lambda: Tokens(512, 64, 512), loss=token_loss, optimizer=adamw,
        batch_size=16,
    ),
}  # fmt: skip
