"""A small exact run, its files, and the services that many tests share."""

from __future__ import annotations

import datetime
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.service.running import Running, running
from veritrain.cli import main

TOKEN = "a-token-of-more-than-20-characters"  # noqa: S105

JOB = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import veritrain as vt


def model():
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


def job():
    x = torch.arange(96, dtype=torch.float32).reshape(24, 4) / 64
    return vt.Job(model=model, dataset=TensorDataset(x, torch.arange(24) % 3), loss=loss,
                  optimizer=lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
                  batch_size=8, steps=12, seed=3, checkpoint_every=2)
"""


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds job.py and the finished run `run`, which nobody changes."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "job.py").write_text(JOB)
    key = folder / "trainer.key"
    assert main(["keygen", str(key)]) == 0
    words = ["train", f"{folder}/job.py", "--out", f"{folder}/run", "--key", str(key)]
    assert main(words) == 0
    return folder


@pytest.fixture(scope="session")
def contents(home: Path) -> dict[str, bytes]:
    """The files of the run, as they are served."""
    root = home / "run"
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


@pytest.fixture(scope="session")
def service(home: Path) -> Iterator[Running]:
    """Shows the run, to anybody at any rate."""
    with running(home / "run") as one:
        yield one


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for localhost that signed itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    return make_certificate(folder)


def make_certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("localhost")]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    chain, private = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.touch(0o600)
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, private


@pytest.fixture(scope="session")
def large(
    home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, str, bytes]]:
    """Shows a run with a file of two megabytes, which no reader would take: its path and
    content."""
    run = shutil.copytree(home / "run", tmp_path_factory.mktemp("large") / "run")
    data = random.Random(0).randbytes(2_000_003)
    (run / "checkpoints" / "000000000012.safetensors").write_bytes(data)
    with running(run) as one:
        yield one, "/checkpoints/000000000012.safetensors", data
