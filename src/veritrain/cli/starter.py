"""A job to begin with. Run it as it is, then put your own model and data in its place.

    veritrain check job.py                      before a long run: what would be refused
    veritrain train job.py --out runs/first     train, with every step committed to and signed
    veritrain audit runs/first --job job.py     anyone, on any machine: recompute it
    veritrain export runs/first -o model.safetensors

Everything here is ordinary PyTorch. What a job may hold beside this: help(veritrain.Job)
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import veritrain as vt


def dataset() -> TensorDataset:
    """The records: anything with `len(data)` and `data[i]`, where record i is always record i.

    Random numbers in here, in `model` and in `loss` follow from the seed of the job, so they are
    the same on every machine. At the top of this file they would not be.
    """
    points = torch.randn(1000, 2)
    is_inside = points.square().sum(1) < 1.4  # of a circle
    return TensorDataset(points, is_inside.long())


def model() -> nn.Module:
    """Everything that carries over from step to step is a parameter or a buffer of it."""
    return nn.Sequential(nn.Linear(2, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, 2))


def loss(model: nn.Module, batch: list[Tensor]) -> Tensor:
    """One number to make small, from the model and one batch of records."""
    points, labels = batch
    return F.cross_entropy(model(points), labels)


def optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """Any of PyTorch's, and your own."""
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def job() -> vt.Job:
    """What is trained: trainer and auditor have this file, and nothing else, in common."""
    return vt.Job(
        model=model,
        dataset=dataset,
        loss=loss,
        optimizer=optimizer,
        batch_size=50,  # records in a step
        steps=100,
        seed=1,  # all randomness follows from it
        checkpoint_every=25,  # steps between two stored states; an audit goes from one to the next
        numerics="exact",  # the same bits on every machine
    )
