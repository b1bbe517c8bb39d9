"""Language, recurrent and recommendation models: one job for each family.

The five language models are those of `transformers`, unmodified, with random weights. They are
imported where they are built, so that other jobs do not wait for the package.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import Dataset

import veritrain as vt
from tests.zoo.small import Tokens, decayed_groups, token_loss

VOCABULARY, LENGTH = 32, 12
_MASK = VOCABULARY  # the token that hides a word, beyond the vocabulary


# Language models of transformers


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=32, n_layer=2, n_head=4,
            bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def llama() -> nn.Module:
    """RMS norm, rotary embedding, SwiGLU; two heads of keys for four of queries."""
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
            attention_dropout=0.1,
        )
    )  # fmt: skip


def mixtral() -> nn.Module:
    """A mixture of experts of `transformers`: two of four for each word."""
    from transformers import MixtralConfig, MixtralForCausalLM

    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=32, intermediate_size=32, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=LENGTH,
            num_local_experts=4, output_router_logits=True, bos_token_id=0, eos_token_id=0,
        )
    )  # fmt: skip


def bert() -> nn.Module:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=VOCABULARY + 1, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=LENGTH,
        )
    )  # fmt: skip


def albert() -> nn.Module:
    """One layer's weights, used twice; a narrow embedding."""
    from transformers import AlbertConfig, AlbertForMaskedLM

    return AlbertForMaskedLM(
        AlbertConfig(
            vocab_size=VOCABULARY + 1, embedding_size=16, hidden_size=32, intermediate_size=48,
            num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=LENGTH,
            hidden_dropout_prob=0.1,
        )
    )  # fmt: skip


class Masked(Tokens):
    """A sixth of the words hidden, and the last ones of each second sequence padded."""

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        labels = super().__getitem__(index)["inputs"].clone()
        hidden = torch.rand(labels.shape) < 1 / 6
        hidden[index % 5] = True
        attended = torch.arange(len(labels)) < len(labels) - 3 * (index % 2)
        return {
            "input_ids": labels.masked_fill(hidden, _MASK),
            "attention_mask": attended.long(),
            "labels": labels.masked_fill(~(hidden & attended), -100),
        }


def causal_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(input_ids=batch["inputs"], labels=batch["inputs"]).loss


def masked_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    return model(**batch).loss


# Recurrent networks


class Recurrent(nn.Module):
    """Words to the next word, through a recurrent layer that may look both ways."""

    def __init__(self, layer: nn.LSTM | nn.GRU | nn.RNN) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, layer.input_size)
        self.layer = layer
        self.head = nn.Linear(layer.hidden_size * (1 + layer.bidirectional), VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(tokens))[0])


class Tagger(Recurrent):
    """The same on sequences of unlike lengths, packed."""

    def forward(self, tokens: Tensor) -> Tensor:
        lengths = LENGTH - torch.arange(len(tokens)) % 4
        packed = pack_padded_sequence(
            self.embedding(tokens), lengths, batch_first=True, enforce_sorted=False
        )
        return self.head(pad_packed_sequence(self.layer(packed)[0], batch_first=True)[0])


class Cells(nn.Module):
    """The three cells in a loop of one's own."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.lstm = nn.LSTMCell(width, width)
        self.gru = nn.GRUCell(width, width)
        self.rnn = nn.RNNCell(width, width, nonlinearity="relu")
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        lstm, gru, rnn, results = None, None, None, []
        for x in self.embedding(tokens).unbind(1):
            lstm = self.lstm(x, lstm)
            gru = self.gru(lstm[0], gru)
            rnn = self.rnn(gru, rnn)
            results.append(self.head(rnn))
        return torch.stack(results, 1)


# Recommendation


class Clicks(Dataset):
    """Numbers, three bags of categories and whether it was clicked."""

    def __init__(self, count: int = 256) -> None:
        generator = np.random.Generator(np.random.Philox(key=8))
        self.numbers = (generator.integers(-8, 9, (count, 4)) / 8).astype(np.float32)
        self.bags = generator.integers(0, 50, (count, 3, 5))
        liked = (self.bags < 20).sum((1, 2)) + self.numbers.sum(1)
        self.clicked = (liked > np.median(liked)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.clicked)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return (
            torch.from_numpy(self.numbers[index]),
            torch.from_numpy(self.bags[index]),
            torch.tensor(self.clicked[index]),
        )


class Recommender(nn.Module):
    """Bags summed with weights, averaged from offsets, and their maximum; products between them."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.summed = nn.EmbeddingBag(50, width, mode="sum")
        self.averaged = nn.EmbeddingBag(50, width, mode="mean", padding_idx=3)
        self.largest = nn.EmbeddingBag(50, width, mode="max")
        self.weights = nn.Parameter(torch.ones(5))
        self.dense = nn.Sequential(nn.Linear(4, width), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(width + 6, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, numbers: Tensor, bags: Tensor) -> Tensor:
        one, two, three = bags.unbind(1)
        dense = self.dense(numbers)
        features = torch.stack([
            dense,
            self.summed(one, per_sample_weights=self.weights.expand(one.shape)),
            self.averaged(two.flatten(), torch.arange(len(two)) * two.shape[1]),
            self.largest(three),
        ], 1)  # fmt: skip
        pairs = torch.einsum("bif,bjf->bij", features, features)
        rows, columns = torch.triu_indices(4, 4, 1)
        return self.top(torch.cat([dense, pairs[:, rows, columns]], 1)).squeeze(1)


def click_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    numbers, bags, clicked = batch
    return F.binary_cross_entropy_with_logits(model(numbers, bags), clicked)


# Mixture of experts, low-rank adapters


class Experts(nn.Module):
    """Each word goes to two of four experts; a loss of its own keeps their loads even."""

    def __init__(self, width: int = 16, count: int = 4, chosen: int = 2) -> None:
        super().__init__()
        self.router = nn.Linear(width, count, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width))
            for _ in range(count)
        )
        self.chosen = chosen

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        words = x.flatten(0, -2)
        odds = self.router(words).softmax(-1)
        weights, choices = odds.topk(self.chosen)
        weights = weights / weights.sum(-1, keepdim=True)
        result = torch.zeros_like(words)
        for number, expert in enumerate(self.experts):
            word, place = torch.where(choices == number)
            result = result.index_add(0, word, expert(words[word]) * weights[word, place, None])
        load = F.one_hot(choices, len(self.experts)).float().mean((0, 1))
        return result.view_as(x), (load * odds.mean(0)).sum() * len(self.experts)


class Mixture(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.attention = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.experts = Experts(width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        x = self.embedding(tokens)
        y = self.norms[0](x)
        later = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).triu(1)
        x = x + self.attention(y, y, y, attn_mask=later, need_weights=False)[0]
        y, balance = self.experts(self.norms[1](x))
        return self.head(x + y), balance


def mixture_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    scores, balance = model(batch["inputs"])
    return F.cross_entropy(scores.flatten(0, 1), batch["targets"].flatten()) + balance * 0.01


class Adapted(nn.Module):
    """A frozen linear layer plus a low-rank one that is trained."""

    def __init__(self, base: nn.Linear, rank: int = 4, alpha: float = 8.0) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.empty(rank, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.dropout = nn.Dropout(0.05)
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + F.linear(F.linear(self.dropout(x), self.down), self.up) * self.scale


def adapted_llama() -> nn.Module:
    model = llama().requires_grad_(False)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, Adapted(getattr(layer.self_attn, name)))
    return model


def trained_only(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def jobs(steps: int, numerics: str) -> dict[str, vt.Job]:
    """Every job of this module by name."""
    tokens, masked = Tokens(length=LENGTH, vocabulary=VOCABULARY), Masked(length=LENGTH)

    def job(model: Callable[[], nn.Module], dataset: Dataset, loss: Callable, **rest) -> vt.Job:
        return vt.Job(
            model=model, dataset=dataset, loss=loss, batch_size=8, steps=steps, seed=7,
            numerics=numerics, checkpoint_every=8,
            **{"optimizer": lambda m: torch.optim.AdamW(m.parameters(), lr=2e-3), **rest},
        )  # fmt: skip

    return {
        "gpt2": job(
            gpt2, tokens, causal_loss, clip_norm=1.0,
            optimizer=lambda m: torch.optim.AdamW(decayed_groups(m), lr=1e-3, betas=(0.9, 0.95)),
        ),
        "llama": job(llama, tokens, causal_loss, accumulate=2, clip_norm=1.0),
        "mixtral": job(mixtral, tokens, causal_loss),
        "bert": job(bert, masked, masked_loss),
        "albert": job(albert, masked, masked_loss),
        "lstm": job(
            lambda: Recurrent(nn.LSTM(16, 12, 2, batch_first=True, dropout=0.2)), tokens,
            token_loss,
            optimizer=lambda m: torch.optim.SGD(m.parameters(), lr=0.5), clip_norm=0.25,
        ),
        "gru": job(
            lambda: Tagger(nn.GRU(16, 12, 2, batch_first=True, dropout=0.2, bidirectional=True)),
            tokens, token_loss,
        ),
        "rnn": job(lambda: Recurrent(nn.RNN(16, 12, batch_first=True)), tokens, token_loss),
        "cells": job(Cells, tokens, token_loss),
        "recommender": job(
            Recommender, Clicks(), click_loss,
            optimizer=lambda m: torch.optim.Adagrad(m.parameters(), lr=0.02),
        ),
        "mixture-of-experts": job(Mixture, tokens, mixture_loss),
        "lora": job(
            adapted_llama, tokens, causal_loss,
            optimizer=lambda m: torch.optim.AdamW(trained_only(m), lr=1e-2),
        ),
    }  # fmt: skip
