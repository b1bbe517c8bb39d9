"""Weights of a run in the files of others: safetensors, and folders for Hugging Face transformers.

What is exported was verified as it was read (see `weights`). An export appears whole or not at all,
and the same run gives the same safetensors file byte for byte, with what vouches for it as
metadata:

    format            "pt", as PyTorch's readers expect
    veritrain.run     digest of the run's header
    veritrain.step    whose state it is
    veritrain.root    Merkle root of all steps up to this one, which the trainer signed
    veritrain.key     fingerprint of the key that signed

Format: github.com/huggingface/safetensors, "Format"; 8 bytes with the length of the header, the
header (JSON, padded with spaces), the tensors without gaps.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

from torch import Tensor, nn

from veritrain.errors import UsageError
from veritrain.job.job import Job, users_code
from veritrain.models.weights import MODEL, Stored, build, read
from veritrain.transcript import tensors
from veritrain.transcript.fields import shown
from veritrain.transcript.states import DTYPE_BYTES

_DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "uint16": "U16",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "uint32": "U32",
    "int32": "I32",
    "float32": "F32",
    "uint64": "U64",
    "int64": "I64",
    "float64": "F64",
}
_METADATA = "__metadata__"  # no tensor can have this name in a file
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_HEADER_BYTES = 100_000_000  # readers take no longer one
_OF_HF_EXPORTS = re.compile(
    r"(generation_)?config\.json|model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class Export:
    """What was written."""

    path: Path
    step: int
    tensors: int
    bytes: int  # of the file, or of all files in the folder
    run: bytes
    root: bytes
    key: str


def export(
    run: str | os.PathLike[str],
    out: Path,
    *,
    step: int | None = None,
    format: Literal["safetensors", "hf"] = "safetensors",
    job: Job | None = None,
    force: bool = False,
    trusted_key: bytes | str | None = None,
) -> Export:
    """Write the model's tensors at a checkpoint of a run to a file or folder.

    Args:
        run: local path, HTTP address or fsspec URL.
        out: the file, or with "hf" the folder, to make.
        step: of a checkpoint; None for the last one.
        format: "safetensors" is one file with all parameters and buffers under their own names.
            "hf" is a folder for `from_pretrained` of transformers, written by the model itself:
            weights that the model ties are left out, and config.json is there.
        job: of the run; it is executed. "hf" needs it. With "safetensors" the tensors are those of
            the model's `state_dict`, without buffers that are not persistent.
        force: replace what is at `out`; of a folder only one with an earlier export in it.
        trusted_key: see `weights.load_state`.

    Raises:
        UsageError: `out` exists or cannot be written, the model is not one of transformers, or as
            `weights.load_state`.
        TranscriptError, VerificationError, JobError: as `weights.load_model`.
    """
    if format == "hf" and job is None:
        raise UsageError("format hf: the model itself writes it; name the run's job too (--job)")
    _require_place(out, is_folder=format == "hf", force=force)
    _require_outside(out, os.fspath(run))
    if job is None:
        stored = read(run, step, trusted_key=trusted_key, prefix=MODEL)
        weights = {name.removeprefix(MODEL): x for name, x in stored.tensors.items()}
    else:
        model, stored = build(run, job, step, trusted_key=trusted_key)
        if format == "hf":
            return _hf_folder(model, stored, out, force=force)
        weights = {name: stored.tensors[MODEL + name] for name in _persistent(model)}
    _appear(out, lambda file: write_safetensors(file, weights, _vouching(stored)), force=force)
    return _exported(out, stored, len(weights))


def write_safetensors(file: Path, weights: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Make a safetensors file, durably; the same arguments give the same bytes.

    Tensors may share memory or lie in it in any order; each is written whole.

    Raises:
        UsageError: no tensors, a name or a dtype that the format cannot hold, or too many tensors.
        OSError: it cannot be written.
    """
    if not weights:
        raise UsageError("there are no weights to export")
    if _METADATA in weights:
        raise UsageError(f"a tensor is called {_METADATA}, which the format keeps for itself")
    kinds = {name: tensors.dtype_name(tensor) for name, tensor in weights.items()}
    # The largest elements first, so that each tensor lies on a multiple of its element's size.
    order = sorted(weights, key=lambda name: (-DTYPE_BYTES[kinds[name]], name))
    header: dict[str, Any] = {_METADATA: metadata}
    end = 0
    for name in order:
        start, end = end, end + weights[name].numel() * DTYPE_BYTES[kinds[name]]
        header[name] = {
            "dtype": _DTYPES[kinds[name]],
            "shape": list(weights[name].shape),
            "data_offsets": [start, end],
        }
    with file.open("xb") as opened:
        opened.write(_header(header))
        for name in order:
            opened.write(tensors.content(weights[name]))
        _make_durable(opened)


def _header(fields: Mapping[str, Any]) -> bytes:
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    if len(text) > _HEADER_BYTES:
        raise UsageError(
            f"the tensors' names take {len(text)} bytes; a safetensors file has {_HEADER_BYTES}"
        )
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def _hf_folder(model: nn.Module, stored: Stored, out: Path, *, force: bool) -> Export:
    transformers = sys.modules.get("transformers")
    if transformers is None or not isinstance(model, transformers.PreTrainedModel):
        kind = f"{type(model).__module__}.{type(model).__qualname__}"
        raise UsageError(
            f"format hf: the job's model is a {kind}, not a model of transformers; "
            "use the format safetensors"
        )

    def write(folder: Path) -> None:
        with users_code("save_pretrained"):
            cast("Any", model).save_pretrained(folder)
        for file in folder.glob("*.safetensors"):
            _vouch(file, _vouching(stored))

    _appear(out, write, force=force)
    return _exported(out, stored, len(_persistent(model)))


def _vouch(file: Path, metadata: Mapping[str, str]) -> None:
    """Add metadata to a safetensors file that was just written here."""
    copy = file.with_suffix(".part")
    with file.open("rb") as source, copy.open("xb") as target:
        header = json.loads(source.read(int.from_bytes(source.read(_LENGTH_BYTES), "little")))
        header[_METADATA] = {**header.get(_METADATA, {}), **metadata}
        target.write(_header(header))
        shutil.copyfileobj(source, target)
        _make_durable(target)
    copy.replace(file)


def _vouching(stored: Stored) -> dict[str, str]:
    return {
        "format": "pt",
        "veritrain.run": stored.run.hex(),
        "veritrain.step": str(stored.step),
        "veritrain.root": stored.root.hex(),
        "veritrain.key": stored.key,
    }


def _persistent(model: nn.Module) -> list[str]:
    """Names of the tensors in the model's `state_dict`, which may hold other things too."""
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    own |= {name for name, _ in model.named_buffers(remove_duplicate=False)}
    return [name for name in model.state_dict() if name in own]


def _require_place(out: Path, *, is_folder: bool, force: bool) -> None:
    """Check, before anything is read, that an export may appear at `out`."""
    if not os.path.isdir(out.parent):
        raise UsageError(f"{out}: there is no folder {out.parent}; make it first")
    if not os.path.lexists(out):
        return
    if is_folder and out.is_dir() and not out.is_symlink():
        found = sorted(item.name for item in out.iterdir())
        foreign = [name for name in found if not _OF_HF_EXPORTS.fullmatch(name)]
        if foreign:
            raise UsageError(f"{out}: holds {shown(foreign[0])}, no export; choose a new folder")
        if found and not force:
            raise UsageError(f"{out}: exists already; choose another name, or replace it: --force")
    elif is_folder:
        raise UsageError(f"{out}: expected a folder to make, got something that exists")
    elif out.is_dir():
        raise UsageError(f"{out}: is a folder; name a file: -o {out / 'model.safetensors'}")
    elif not force:
        raise UsageError(f"{out}: exists already; choose another name, or replace it: --force")


def _require_outside(out: Path, run: str) -> None:
    """Check that nothing is added to the folder of the run, which would not be a run any more."""
    if "://" not in run and out.resolve().is_relative_to(Path(run).resolve()):
        raise UsageError(f"{out}: lies in the folder of the run, where nothing else may be")


def _appear(out: Path, write: Callable[[Path], None], *, force: bool) -> None:
    """Make a file or a folder beside its place, then move it there; an interrupt leaves neither."""
    unfinished = out.absolute().with_name(f".{secrets.token_hex(8)}.part")
    try:
        write(unfinished)
        _require_place(out, is_folder=unfinished.is_dir(), force=force)
        if unfinished.is_dir() and out.is_dir():
            shutil.rmtree(out)  # an earlier export, and nothing else
        unfinished.replace(out)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written: {error.strerror or error}") from error
    finally:
        if unfinished.is_dir():
            shutil.rmtree(unfinished)
        unfinished.unlink(missing_ok=True)


def _make_durable(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _exported(out: Path, stored: Stored, count: int) -> Export:
    files = list(out.iterdir()) if out.is_dir() else [out]
    return Export(
        path=out,
        step=stored.step,
        tensors=count,
        bytes=sum(file.stat().st_size for file in files),
        run=stored.run,
        root=stored.root,
        key=stored.key,
    )
