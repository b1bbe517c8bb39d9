"""What the benchmark of logged numerics says of classes that a model has, and has not."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from benchmarks.__main__ import show
from benchmarks.large import gpt2, language_loss
from benchmarks.logged import _corrections, _steered
from benchmarks.models import Images, Tokens, Workload, adamw, image_loss, sgd

SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 16, "vocab_size": 50}


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.fixture
def images() -> Workload:
    return Workload(
        model=net, dataset=lambda: Images(64, 3, 8), loss=image_loss, optimizer=sgd, batch_size=16
    )


def test_classes_that_a_model_has_not_are_not_measured(images, capsys):
    found = _corrections(images, "logged-bf16")
    assert found["product corrected / million"] >= 0.0
    assert found["product gap / threshold"] > 0.0
    assert found["attention corrected / million"] is found["attention gap / threshold"] is None
    show("small", [{"run": "net", **found}])
    assert "None" not in capsys.readouterr().out


def test_attention_is_measured_without_dropout():
    model = partial(gpt2, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, **SMALL)
    workload = Workload(
        model=model, dataset=lambda: Tokens(16, 16, 50), loss=language_loss, optimizer=adamw,
        batch_size=8,
    )  # fmt: skip
    assert _corrections(workload, "logged")["attention gap / threshold"] > 0.0


def test_accepted_steering_moves_less_than_all_of_it(images):
    # a rate so large that bfloat16 weights do not swallow what gradients move
    fast = replace(images, optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=8.0))
    found = _steered(fast, "logged-bf16")
    assert 0.0 < found["accepted steering / honest step"] < found["steered / honest step"]
