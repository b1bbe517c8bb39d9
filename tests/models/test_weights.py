"""Weights out of a run: what is read, that it is verified, and the files that others read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import veritrain as vt
from veritrain.encoding import decode, encode
from veritrain.models import exports
from veritrain.models.exports import export, write_safetensors
from veritrain.transcript import Signer, Transcript
from veritrain.transcript.states import DTYPE_BYTES

SIGNER = Signer.generate()
FOLDERS = ("leaves", "signatures")


class Tied(nn.Module):
    """Tied parameters, a running count, a buffer that is not persistent, one that is transposed."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.into = nn.Embedding(5, width)
        self.norm = nn.BatchNorm1d(width)
        self.out = nn.Linear(width, 5, bias=False)
        self.out.weight = self.into.weight
        self.register_buffer("scale", torch.full((1,), 0.5), persistent=False)
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).t())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.into(x)) * self.scale)


def make_job(**changes: object) -> vt.Job:
    fields = {
        "model": Tied,
        "dataset": TensorDataset(torch.arange(20) % 5, torch.arange(20) % 3),
        "loss": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1]),
        "optimizer": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
        "batch_size": 4,
        "steps": 4,
        "seed": 5,
        "checkpoint_every": 2,
    }
    return vt.Job(**{**fields, **changes})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and the model's tensors after each step of it."""
    place = tmp_path_factory.mktemp("weights") / "run"
    seen = {}
    with vt.Recorder(make_job(), place, signer=SIGNER) as run:
        seen[0] = tensors_of(run.model)
        for step in run:
            step.train()
            seen[step.number] = tensors_of(run.model)
    return place, seen


def tensors_of(model: nn.Module) -> dict[str, torch.Tensor]:
    pairs = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {name: tensor.detach().clone() for name, tensor in pairs}


def assert_same(got, expected):
    assert got.keys() == expected.keys()
    for name in expected:
        assert got[name].dtype == expected[name].dtype
        assert torch.equal(got[name], expected[name]), name


# load_state and load_model


@pytest.mark.parametrize("step", [0, 2, 4, None])
def test_the_model_is_as_it_was_at_that_step(trained, step):
    run, seen = trained
    expected = seen[4 if step is None else step]
    assert_same(vt.load_state(run, step), expected)
    model = vt.load_model(run, make_job(), step)
    assert not any(module.training for module in model.modules())
    assert model.out.weight is model.into.weight
    assert_same(tensors_of(model), expected)
    x = torch.arange(5)
    fresh = Tied()
    fresh.load_state_dict(vt.load_state(run, step), strict=False)
    assert torch.equal(model(x), fresh.eval()(x))


def test_the_whole_state_has_the_names_of_the_format(trained):
    run, seen = trained
    state = vt.load_state(run, 2, part="all")
    own = {n.removeprefix("model/"): x for n, x in state.items() if n.startswith("model/")}
    assert_same(own, seen[2])
    assert state["optimizer/into.weight/exp_avg"].shape == (5, 6)
    assert {name.partition("/")[0] for name in state} == {"model", "optimizer"}


def test_a_step_that_is_not_stored_names_those_that_are(trained, tmp_path):
    run, _ = trained
    for load in (vt.load_state, lambda run, step: vt.load_model(run, make_job(), step)):
        with pytest.raises(vt.UsageError, match=r"step 3: .* stored are 0, 2, 4$"):
            load(run, 3)
    with pytest.raises(vt.UsageError, match="step: expected a number, got '2'"):
        vt.load_state(run, "2")
    with pytest.raises(vt.UsageError, match="part: expected 'model' or 'all', got 'optimizer'"):
        vt.load_state(run, part="optimizer")
    vt.train(make_job(checkpoint_every=1, steps=20), tmp_path / "often", signer=SIGNER)
    with pytest.raises(vt.UsageError, match="stored are 21 steps, among them 9, 10, .*, 20$"):
        vt.load_state(tmp_path / "often", 99)


def test_a_run_without_a_commit_stores_nothing(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    for folder in ("leaves", "checkpoints", "signatures"):
        shutil.rmtree(run / folder)
    with pytest.raises(vt.UsageError, match="no state is stored yet"):
        vt.load_state(run)


def test_only_a_trusted_key_counts(trained):
    run, seen = trained
    for key in (SIGNER.public_key, SIGNER.fingerprint, SIGNER.fingerprint.upper()):
        assert_same(vt.load_state(run, trusted_key=key), seen[4])
    for key in (Signer.generate().public_key, Signer.generate().fingerprint):
        with pytest.raises(vt.VerificationError, match="signed by another key"):
            vt.load_state(run, trusted_key=key)
        with pytest.raises(vt.VerificationError, match="signed by another key"):
            vt.load_model(run, make_job(), trusted_key=key)


def test_every_changed_file_that_counts_is_noticed(trained, tmp_path):
    """One bit of each file of the run: no weights come out, or the very same."""
    original, seen = trained
    harmless: set[str] = set()
    for file in sorted(path for path in original.rglob("*") if path.is_file()):
        run = shutil.copytree(original, tmp_path / "run")
        target = run / file.relative_to(original)
        data = bytearray(target.read_bytes())
        data[-1] ^= 1
        target.write_bytes(data)
        try:
            assert_same(vt.load_state(run), seen[4])
            harmless.add(str(file.relative_to(original)))
        except (vt.VerificationError, vt.TranscriptError):
            pass
        shutil.rmtree(run)
    # What is stored for earlier steps alone is not read, nor what the run carries beside its steps.
    read = {"header", *(f"{folder}/00000000000{s}" for folder in FOLDERS for s in (0, 2, 4))}
    read |= {f"checkpoints/000000000004.{kind}" for kind in ("manifest", "safetensors")}
    assert not harmless & read


def test_a_signature_by_someone_else_is_no_run(trained, tmp_path):
    run = shutil.copytree(trained[0], tmp_path / "run")
    file = run / "signatures" / "000000000004"
    value = decode(file.read_bytes(), where="test")
    value["signature"] = Signer.generate().sign("head", encode(value["head"]))
    file.write_bytes(encode(value))
    with pytest.raises(vt.VerificationError, match="step 4: signature of the head"):
        vt.load_state(run)
    with pytest.raises(vt.VerificationError, match="step 4: signature of the head"):
        vt.load_model(run, make_job())


def test_a_job_of_another_model_is_named(trained):
    run, _ = trained
    for changes, words in [
        ({"model": lambda: Tied(7)}, r"model/.*expected float32 of shape .*7.*is it the job of"),
        ({"model": lambda: nn.Embedding(5, 6)}, "has no such tensor.*is it the job of this run"),
        (
            {"optimizer": lambda model: torch.optim.SGD(model.parameters(), lr=0.1)},
            "the job does not fit the state of step 4: .*is it the job of this run",
        ),
    ]:
        with pytest.raises(vt.UsageError, match=words):
            vt.load_model(run, make_job(**changes))


def test_only_what_is_asked_for_is_read(trained, tmp_path):
    """The optimiser's tensors are two thirds of a state of Adam's: the model alone needs none."""
    run, _ = trained
    assert len(Transcript.open(run).load_state(4, prefix="model/into")) == 1
    assert Transcript.open(run).load_state(4, prefix="nothing") == {}


# safetensors


def every_dtype() -> dict[str, torch.Tensor]:
    raw = torch.randint(
        0, 256, (2, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    made = {
        name: (raw > 127) if name == "bool" else raw.view(getattr(torch, name))
        for name in DTYPE_BYTES
    }
    return {
        **made,
        "turned": torch.arange(6.0).reshape(2, 3).t(),
        "strided": torch.arange(12.0)[::3],
        "shared": made["float32"],
        "part": made["float32"][:1],
        "negative": torch.arange(3, dtype=torch.float32)._neg_view(),
        "expanded": torch.ones(1).expand(4),
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 3),
        'a name: "with" \\ \n ünïcode': torch.ones(1, dtype=torch.bfloat16),
    }


def test_every_dtype_of_the_format_and_every_layout_is_written(tmp_path):
    weights = every_dtype()
    write_safetensors(tmp_path / "x", weights, {"format": "pt"})
    read = load_file(tmp_path / "x")
    assert read.keys() == weights.keys()
    for name, tensor in weights.items():
        assert (read[name].dtype, read[name].shape) == (tensor.dtype, tensor.shape), name
        got, expected = (
            x.resolve_neg().contiguous().reshape(-1).view(torch.uint8) for x in (read[name], tensor)
        )
        assert torch.equal(got, expected), name
    assert {tensor.dtype for tensor in read.values()} == {getattr(torch, n) for n in DTYPE_BYTES}


def test_what_the_format_cannot_hold_is_refused(tmp_path):
    for weights, words in [
        ({}, "no weights"),
        ({"__metadata__": torch.ones(1)}, "a tensor is called __metadata__"),
        ({"x": torch.ones(1, dtype=torch.complex64)}, "complex64 cannot be part"),
    ]:
        with pytest.raises(vt.UsageError, match=words):
            write_safetensors(tmp_path / "x", weights, {})
    assert list(tmp_path.iterdir()) == []


def test_an_export_is_what_the_run_stores_byte_for_byte_the_same(trained, tmp_path):
    run, seen = trained
    made = export(run, tmp_path / "a.safetensors")
    export(run, tmp_path / "b.safetensors", trusted_key=SIGNER.fingerprint)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert_same(load_file(made.path), seen[4])
    transcript = Transcript.open(run)
    with safe_open(made.path, "pt") as file:
        assert file.metadata() == {
            "format": "pt",
            "veritrain.run": transcript.header.digest.hex(),
            "veritrain.step": "4",
            "veritrain.root": transcript.heads[-1].head.root.hex(),
            "veritrain.key": SIGNER.fingerprint,
        }
    assert (made.step, made.tensors) == (4, len(seen[4]))
    assert made.bytes == made.path.stat().st_size


def test_with_the_job_it_is_what_load_state_dict_takes(trained, tmp_path):
    run, seen = trained
    made = export(run, tmp_path / "x", step=2, job=make_job())
    read = load_file(made.path)
    assert "scale" not in read
    model = Tied()
    model.load_state_dict(read)
    assert_same(tensors_of(model), seen[2])


def test_nothing_is_overwritten_unless_it_is_asked_for(trained, tmp_path):
    run, _ = trained
    out = tmp_path / "x"
    out.write_text("mine")
    with pytest.raises(vt.UsageError, match="exists already; .*--force"):
        export(run, out)
    assert out.read_text() == "mine"
    export(run, out, force=True)
    assert load_file(out)
    for place, words in [
        (tmp_path, "is a folder; name a file: -o .*model.safetensors"),
        (tmp_path / "no" / "x", "there is no folder"),
        (run / "x.safetensors", "lies in the folder of the run"),
        (run / "checkpoints" / "x.safetensors", "lies in the folder of the run"),
        (tmp_path / ("x" * 300), "cannot be written: File name too long"),
    ]:
        with pytest.raises(vt.UsageError, match=words):
            export(run, place, force=True)
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_export_that_ends_early_leaves_nothing(trained, tmp_path, monkeypatch, error):
    run, _ = trained
    old = tmp_path / "old"
    old.write_text("mine")

    def sync(descriptor):
        raise error

    monkeypatch.setattr(exports.os, "fsync", sync)
    expected = KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else vt.UsageError
    with pytest.raises(expected):
        export(run, old, force=True)
    with pytest.raises(expected):
        export(run, tmp_path / "new")
    assert os.listdir(tmp_path) == ["old"]
    assert old.read_text() == "mine"


def test_an_export_without_a_job_executes_nothing(trained, tmp_path):
    """A fresh process, which says what it loaded from where the tests' own code lies."""
    run, _ = trained
    code = textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from veritrain.models.exports import export
        export({str(run)!r}, Path({str(tmp_path / "x")!r}))
        print([n for n, m in sys.modules.items() if "tests" in str(getattr(m, "__file__", ""))
               and "site-packages" not in str(m.__file__)])
    """)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# Hugging Face


def tiny_gpt2() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=11, n_positions=8, n_embd=8, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def language_job(**changes: object) -> vt.Job:
    return make_job(
        **{
            "model": tiny_gpt2,
            "dataset": TensorDataset(torch.arange(8 * 6).reshape(8, 6) % 11),
            "loss": lambda model, batch: model(input_ids=batch[0], labels=batch[0]).loss,
            "steps": 1,
            **changes,
        }
    )


def test_a_folder_for_transformers_is_loaded_by_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    run, out = tmp_path / "run", tmp_path / "out"
    vt.train(language_job(), run, signer=SIGNER)
    made = export(run, out, format="hf", job=language_job())
    assert {file.name for file in out.iterdir()} >= {"config.json", "model.safetensors"}
    with safe_open(out / "model.safetensors", "pt") as file:
        assert "lm_head.weight" not in file.keys()  # noqa: SIM118 - no dict: tied to wte
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    assert metadata["veritrain.root"] == made.root.hex()
    loaded = transformers.AutoModelForCausalLM.from_pretrained(out)
    expected = vt.load_model(run, language_job())
    assert_same(tensors_of(loaded), tensors_of(expected))
    assert json.loads((out / "config.json").read_text())["architectures"] == ["GPT2LMHeadModel"]
    with pytest.raises(vt.UsageError, match="exists already; .*--force"):
        export(run, out, format="hf", job=language_job())
    before = (out / "model.safetensors").read_bytes()
    export(run, out, format="hf", job=language_job(), force=True)
    assert (out / "model.safetensors").read_bytes() == before
    (out / "notes.txt").write_text("mine")
    with pytest.raises(vt.UsageError, match="holds 'notes.txt', no export; choose a new folder"):
        export(run, out, format="hf", job=language_job(), force=True)
    assert {item.name for item in tmp_path.iterdir()} == {"run", "out"}


def test_other_models_are_refused_by_name(trained, tmp_path):
    run, _ = trained
    with pytest.raises(vt.UsageError, match=r"test_weights.Tied, not a model of transform"):
        export(run, tmp_path / "x", format="hf", job=make_job())
    with pytest.raises(vt.UsageError, match="name the run's job too"):
        export(run, tmp_path / "x", format="hf")
    assert not list(tmp_path.iterdir())
    Path(tmp_path / "file").touch()
    with pytest.raises(vt.UsageError, match="expected a folder to make"):
        export(run, tmp_path / "file", format="hf", job=make_job(), force=True)


def test_a_state_larger_than_the_machine_is_refused_before_it_is_read(trained, monkeypatch):
    """A sparse file of some kilobytes can hold gigabytes of zeros."""
    monkeypatch.setattr("veritrain.models.weights.os.sysconf", lambda name: 1)
    monkeypatch.setattr(Transcript, "_open_pack", lambda *_: pytest.fail("a pack is read"))
    with pytest.raises(vt.UsageError, match="stored tensors take .* bytes of memory, .* has 1"):
        vt.load_state(trained[0])
