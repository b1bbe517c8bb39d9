"""Image and audio models, and the optimisers: one job for each family.

The data sets crop, flip and add noise with every keyed generator: torch, `random` and numpy's own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.utils.data import Dataset
from transformers import ViTConfig, ViTForImageClassification

import veritrain as vt
from benchmarks import models
from tests.zoo.small import Images, image_loss, perceptron


class Augmented(Images):
    """A random resized crop, flip, erased corner and noise, drawn from three generators."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        size = image.shape[-1]
        image = F.pad(image[None], (2, 2, 2, 2), mode="reflect")
        side = random.randint(size - 4, size + 4)
        top, left = torch.randint(0, size + 5 - side, (2,)).tolist()
        image = image[..., top : top + side, left : left + side]
        image = F.interpolate(image, size=(size, size), mode="bilinear", antialias=True)[0]
        if random.random() < 0.5:
            image = image.flip(-1)
        image = image + torch.randn_like(image) * 0.05
        erased = np.random.randint(0, size, 2)
        image[:, erased[0] : erased[0] + 3, erased[1] : erased[1] + 3] = np.random.rand()
        return image, label


class Waves(Dataset):
    """Generated signals of 256 samples, float32 (1, 256), of four classes, at a random volume."""

    def __init__(self, count: int = 64) -> None:
        generator = np.random.Generator(np.random.Philox(key=8))
        self.labels = generator.integers(0, 4, count)
        rising = np.arange(256) * (self.labels[:, None] + 2) % 64
        noise = generator.integers(-8, 9, (count, 256))
        self.waves = ((rising - 32 + noise) / 32).astype(np.float32)[:, None]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        wave = torch.from_numpy(self.waves[index]).roll(random.randrange(32), -1)
        return wave * torch.empty(()).uniform_(0.5, 1.0), int(self.labels[index])


class Scans(Images):
    """Generated volumes, float32 (1, 8, 8, 8), with a class."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image, label = super().__getitem__(index)
        return image[None], label


def vgg(width: int = 8, classes: int = 10) -> nn.Module:
    """VGG with batch norm: pairs of convolutions, max pooling, dropout between linear layers."""
    layers: list[nn.Module] = []
    inputs = 3
    for outputs in (width, 2 * width, 4 * width):
        for _ in range(2):
            layers += [
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(True)
            ]  # fmt: skip
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(3), nn.Flatten(),
        nn.Linear(9 * inputs, 32), nn.ReLU(True), nn.Dropout(0.5), nn.Linear(32, classes),
    )  # fmt: skip


class VisionTransformer(nn.Module):
    """ViT as `transformers` has it."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = ViTForImageClassification(
            ViTConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=64,
                hidden_dropout_prob=0.1,
                attention_probs_dropout_prob=0.1,
                image_size=16,
                patch_size=4,
                num_labels=10,
            )
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(pixel_values=images).logits


class UNet(nn.Module):
    """U-Net with group norm: up by a transposed convolution, bilinear and nearest interpolation."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        sizes = [width, 2 * width, 2 * width, 4 * width]
        self.stem = self.block(3, sizes[0])
        self.down = nn.ModuleList(self.block(a, b) for a, b in pairwise(sizes))
        self.up = nn.ModuleList([
            nn.ConvTranspose2d(sizes[3], sizes[2], 2, stride=2),
            nn.Sequential(
                nn.Upsample(scale_factor=2, mode="bilinear"), nn.Conv2d(sizes[2], sizes[1], 1)
            ),
            nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(sizes[1], sizes[0], 3, padding=1)),
        ])  # fmt: skip
        self.merge = nn.ModuleList(
            self.block(2 * size, size) for size in (sizes[2], sizes[1], sizes[0])
        )
        self.head = nn.Conv2d(sizes[0], 3, 1)

    @staticmethod
    def block(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(4, outputs), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        kept: list[Tensor] = []
        for down in self.down:
            kept.append(x)
            x = down(F.max_pool2d(x, 2))
        for up, merge in zip(self.up, self.merge, strict=True):
            x = merge(torch.cat([up(x), kept.pop()], 1))
        return self.head(x)


def denoising_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Find the noise that was added, as diffusion models do."""
    noise = torch.randn_like(batch[0])
    share = torch.rand(len(noise), 1, 1, 1)
    return F.mse_loss(model(batch[0] * (1 - share) + noise * share), noise)


def mixup_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mixup: pairs of images with a share from numpy's Beta distribution."""
    images, labels = batch
    share, partners = np.random.beta(0.4, 0.4), torch.randperm(len(labels))
    logits = model(images * share + images[partners] * (1 - share))
    first, second = F.cross_entropy(logits, labels), F.cross_entropy(logits, labels[partners])
    return first * share + second * (1 - share)


class ConvNextBlock(nn.Module):
    """Depthwise convolution, layer norm, two linear layers, layer scale, stochastic depth."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 1e-2))
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = (self.narrow(F.gelu(self.wide(y))) * self.scale).permute(0, 3, 1, 2)
        kept = torch.empty(len(x), 1, 1, 1).bernoulli_(1 - self.drop) / (1 - self.drop)
        return x + y * kept


class ConvNext(nn.Module):
    """ConvNeXt: a patch stem, two stages, a classifier."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 2, stride=2)
        self.first = nn.Sequential(ConvNextBlock(width, 0.1), ConvNextBlock(width, 0.2))
        self.down = nn.Conv2d(width, 2 * width, 2, stride=2, padding="valid")
        self.second = ConvNextBlock(2 * width, 0.3)
        self.norm = nn.LayerNorm(2 * width)
        self.head = nn.Linear(2 * width, 10)
        nn.init.orthogonal_(self.head.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.down(self.first(self.stem(x))))
        return self.head(self.norm(x.mean((2, 3))))


def audio_net() -> nn.Module:
    """One-dimensional convolutions: strided, dilated, grouped."""
    return nn.Sequential(
        nn.Conv1d(1, 8, 9, stride=4, padding=4), nn.BatchNorm1d(8), nn.ReLU(), nn.MaxPool1d(2),
        nn.Conv1d(8, 16, 3, padding=4, dilation=4), nn.BatchNorm1d(16), nn.ReLU(), nn.AvgPool1d(2),
        nn.Conv1d(16, 16, 3, padding=1, groups=4), nn.BatchNorm1d(16), nn.LeakyReLU(0.1),
        nn.Dropout1d(0.1), nn.AdaptiveAvgPool1d(5), nn.Flatten(), nn.Linear(80, 4),
    )  # fmt: skip


def volume_net() -> nn.Module:
    """Three-dimensional convolutions and pooling."""
    return nn.Sequential(
        nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.ReLU(), nn.MaxPool3d(2),
        nn.Conv3d(8, 16, 3, padding=1, groups=2), nn.InstanceNorm3d(16), nn.ReLU(), nn.AvgPool3d(2),
        nn.Dropout3d(0.1), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


class Lars(Optimizer):
    """LARS: SGD with momentum whose rate of each tensor follows the ratio of two norms.

    Source: You, Gitman, Ginsburg: Large batch training of convolutional networks, 2017.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, momentum: float = 0.9, decay: float = 1e-4,
        trust: float = 0.02,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "momentum": momentum, "decay": decay, "trust": trust})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["buffer"] = torch.zeros_like(p)
                size, slope = p.norm(), p.grad.norm()
                ratio = group["trust"] * size / (slope + group["decay"] * size + 1e-9)
                ratio = torch.where((size > 0) & (slope > 0), ratio, torch.ones_like(ratio))
                step = (p.grad + group["decay"] * p) * ratio
                state["buffer"].mul_(group["momentum"]).add_(step)
                p.add_(state["buffer"], alpha=-group["lr"])


class Lamb(Optimizer):
    """LAMB: Adam whose step of each tensor has the norm of the tensor.

    Source: You and others: Large batch optimization for deep learning, ICLR 2020.
    """

    def __init__(
        self, params: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6, decay: float = 0.01,
    ) -> None:  # fmt: skip
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["mean"], state["square"] = torch.zeros_like(p), torch.zeros_like(p)
                state["mean"].lerp_(p.grad, 1 - beta1)
                state["square"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                step = state["mean"] / (state["square"].sqrt() + group["eps"])
                step += group["decay"] * p
                size, length = p.norm(), step.norm()
                ratio = torch.where((size > 0) & (length > 0), size / length, 1.0)
                p.sub_(step * ratio, alpha=group["lr"])


def jobs(steps: int, numerics: str) -> dict[str, vt.Job]:
    """Every job of this module by name."""
    common = {
        "steps": steps, "seed": 11, "numerics": numerics, "checkpoint_every": 8, "batch_size": 8,
        "loss": image_loss,
    }  # fmt: skip
    pictures = Augmented(64, channels=3, size=16)

    def trained_by(optimizer: type[Optimizer], **options: Any) -> Callable[[nn.Module], Optimizer]:
        return lambda model: optimizer(model.parameters(), **options)

    return {
        "resnet18-lars": vt.Job(
            model=lambda: models.resnet(4), dataset=pictures, optimizer=trained_by(Lars, lr=0.5),
            **common,
        ),
        "resnet50-sgd-foreach": vt.Job(
            model=lambda: models.resnet50(4), dataset=pictures,
            optimizer=trained_by(torch.optim.SGD, lr=0.05, momentum=0.9, foreach=True), **common,
        ),
        "vgg-rmsprop": vt.Job(
            model=vgg, dataset=pictures, **{**common, "loss": mixup_loss},
            optimizer=trained_by(torch.optim.RMSprop, lr=1e-3, momentum=0.9, centered=True),
        ),
        "vit-lamb": vt.Job(
            model=VisionTransformer, dataset=pictures, optimizer=trained_by(Lamb, lr=0.01),
            **common,
        ),
        "unet-adam-fused": vt.Job(
            model=UNet, dataset=pictures, **{**common, "loss": denoising_loss},
            optimizer=trained_by(torch.optim.Adam, lr=2e-3, fused=True, amsgrad=True),
        ),
        "convnext-adamw": vt.Job(
            model=ConvNext, dataset=pictures, **common,
            optimizer=trained_by(torch.optim.AdamW, lr=2e-3, weight_decay=0.05),
        ),
        "audio-adagrad": vt.Job(
            model=audio_net, dataset=Waves(), optimizer=trained_by(torch.optim.Adagrad, lr=0.02),
            **common,
        ),
        "volume-adadelta": vt.Job(
            model=volume_net, dataset=Scans(64, channels=8),
            optimizer=trained_by(torch.optim.Adadelta),
            **common,
        ),
        **{
            f"perceptron-{kind.__name__.lower()}": vt.Job(
                model=perceptron, dataset=Images(64),
                optimizer=trained_by(kind, lr=0.002, weight_decay=0.01, foreach=True), **common,
            )
            for kind in (torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax, torch.optim.ASGD)
        },
    }  # fmt: skip
