"""A job: a small transformer that learns to continue generated text, character by character.

    veritrain train examples/char_transformer.py --out runs/characters

It shows a data set made by the job file itself, dict batches, parameter groups, a warm-up
schedule and gradient clipping.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset

import veritrain as vt

LENGTH = 24  # characters that the model sees at once
WIDTH = 32
ALPHABET = "abcdefghijklmnopqrstuvwxyz ."
WARM_UP = 20  # steps


class Sentences(Dataset[dict[str, Tensor]]):
    """Windows into a text of sentences such as "the cat sees the red bird."."""

    def __init__(self, sentences: int = 100) -> None:
        draw = random.Random(1)  # noqa: S311 - a data set, not a secret
        nouns, verbs, colours = ["cat", "bird", "dog"], ["sees", "hears"], ["red", "blue", ""]
        words: list[str] = []
        for _ in range(sentences):
            words += ["the", draw.choice(nouns), draw.choice(verbs)]
            words += ["the", draw.choice(colours), draw.choice(nouns) + "."]
        text = " ".join(word for word in words if word)
        self.text = torch.tensor([ALPHABET.index(character) for character in text])

    def __len__(self) -> int:
        return len(self.text) - LENGTH

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        window = self.text[index : index + LENGTH + 1]
        return {"seen": window[:-1], "next": window[1:]}


class CharacterModel(nn.Module):
    """Two transformer layers that look at what came before only."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(len(ALPHABET), WIDTH)
        self.places = nn.Parameter(torch.zeros(LENGTH, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, 4, 2 * WIDTH, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(WIDTH, len(ALPHABET))
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(LENGTH))

    def forward(self, seen: Tensor) -> Tensor:
        """Scores of the next character, [batch, LENGTH, len(ALPHABET)]."""
        x = self.characters(seen) + self.places
        return self.head(self.layers(x, mask=self.mask))


def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch["seen"]).flatten(0, 1), batch["next"].flatten())


def optimizer(model: nn.Module) -> Optimizer:
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors}], 3e-3)


def scheduler(optimizer: Optimizer) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / WARM_UP))


def job() -> vt.Job:
    return vt.Job(
        model=CharacterModel,
        dataset=Sentences(),
        loss=loss,
        optimizer=optimizer,
        scheduler=scheduler,
        clip_norm=1.0,
        batch_size=16,
        steps=150,
        seed=7,
        checkpoint_every=50,
    )
