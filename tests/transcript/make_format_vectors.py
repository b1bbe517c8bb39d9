"""Write vectors/format: the test vectors of docs/format.md. Everything in them is determined.

    python tests/transcript/make_format_vectors.py [FOLDER]

`test_format_vectors.py` regenerates them and compares, so that a change of the format is a visible
change of these files. A case of a run is a folder with `case.json` and the files of the run; a case
whose `fails` is not null must fail in that operation, with that error.
"""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from run_builder import (
    COMMITS,
    OTHER_SIGNER,
    SIGNER,
    Files,
    head_of,
    make_header,
    make_run,
    put_head,
    resign,
    state_at,
    write_files,
)

from veritrain.encoding import Value, decode, digest, encode
from veritrain.transcript import files, merkle
from veritrain.transcript.packs import pack_layout
from veritrain.transcript.records import Checkpoint, Leaf, TensorEntry, decode_segment
from veritrain.transcript.tensors import content, state_entries, state_root

FOLDER = Path(__file__).parents[2] / "vectors" / "format"
LAST = COMMITS[-1]

Change = Callable[[Files], None]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One run folder and what must come of it."""

    name: str
    description: str
    change: Change = lambda run: None
    operation: str | None = None  # that must fail
    error: str = "VerificationError"
    message: str = ""  # part of the error's text
    step: int | None = None  # argument of verify_checkpoint


def edit(path: str, change: Callable[[Any], None]) -> Change:
    """Change the decoded record in a file and encode it again."""

    def apply(run: Files) -> None:
        value = decode(run[path], where=path)
        change(value)
        run[path] = encode(value)

    return apply


def put(path: str, field: str, value: Value) -> Change:
    return edit(path, lambda record: record.__setitem__(field, value))


def flip(path: str, place: int) -> Change:
    def apply(run: Files) -> None:
        data = bytearray(run[path])
        data[place] ^= 1
        run[path] = bytes(data)

    return apply


def raw(path: str, change: Callable[[bytes], bytes]) -> Change:
    def apply(run: Files) -> None:
        run[path] = change(run[path])

    return apply


def add(path: str, data: bytes) -> Change:
    return lambda run: run.__setitem__(path, data)


def drop(*paths: str) -> Change:
    def apply(run: Files) -> None:
        for path in paths:
            del run[path]

    return apply


def signed(change: Change) -> Change:
    """What a trainer can do who lies and signs it."""

    def apply(run: Files) -> None:
        change(run)
        resign(run)

    return apply


def forge_leaf(step: int, relink: bool, **fields: object) -> Change:
    """Change a leaf of the last segment; `relink` makes the later leaves follow it."""

    def apply(run: Files) -> None:
        path = files.segment_path(2)
        leaves = list(decode_segment(run[path], where=path))
        index = step - leaves[0].step
        leaves[index] = replace(leaves[index], **fields)
        if relink:
            for place in range(index + 1, len(leaves)):
                leaves[place] = replace(leaves[place], previous=leaves[place - 1].digest)
        run[path] = encode([leaf.to_value() for leaf in leaves])
        if relink:
            relink_last(run, leaves[-1])
        resign(run)

    return apply


def relink_last(run: Files, leaf: Leaf) -> None:
    path = files.segment_path(LAST)
    (last,) = decode_segment(run[path], where=path)
    run[path] = encode([replace(last, previous=leaf.digest).to_value()])


def claim_zero_weights(run: Files) -> None:
    """A checkpoint whose manifest and pack agree, but whose state is not the leaf's."""
    path = files.manifest_path(LAST)
    checkpoint = Checkpoint.from_bytes(run[path], where=path)
    entries = [
        (
            replace(entry, digest=digest("tensor", b"\1\2\3\4"))
            if entry.name == "model/half"
            else entry
        )
        for entry in checkpoint.tensors
    ]
    value: Any = checkpoint.to_value()
    value["tensors"] = [entry.to_value() for entry in entries]
    run[path] = encode(value)


def other_bytes_under_a_digest(run: Files) -> None:
    path = files.pack_path(0)
    pack = run[path]
    run[path] = pack[:-4] + b"\x00\x00\x00\x01"


def wrong_pack(pack: int) -> Change:
    """Say of every tensor of the last checkpoint that changed that an earlier pack holds it."""

    def change(record: Any) -> None:
        record["packs"] = [pack if step == LAST else step for step in record["packs"]]

    return edit(files.manifest_path(LAST), change)


def store_again(run: Files) -> None:
    """The last pack holds what the first one holds already, and the manifest says so."""
    path = files.manifest_path(LAST)
    checkpoint = Checkpoint.from_bytes(run[path], where=path)
    own = replace(checkpoint, packs=(LAST,) * len(checkpoint.packs))
    state = state_at(LAST)
    contents = {entry.digest: bytes(content(state[entry.name])) for entry in own.tensors}
    layout = pack_layout(own.stored_sizes())
    run[path] = own.to_bytes()
    run[files.pack_path(LAST)] = layout.header + b"".join(contents[key] for key in layout.spans)


def sign_with_another_key(run: Files) -> None:
    put_head(run, head_of(run, LAST), OTHER_SIGNER)


def change_heads(**fields: object) -> Change:
    def last(head: Any) -> Any:
        return replace(head, **fields) if head.step == LAST else head

    return lambda run: resign(run, last)


def header_of_pack(change: Callable[[bytes], bytes]) -> Change:
    """Change the JSON of a pack, its length and so the size of the file kept."""

    def apply(run: Files) -> None:
        path = files.pack_path(0)
        size = int.from_bytes(run[path][:8], "little")
        text = change(run[path][8 : 8 + size])
        run[path] = run[path][:8] + text[:size].ljust(size) + run[path][8 + size :]

    return apply


HEADER = files.HEADER
SEGMENT = files.segment_path(2)
MANIFEST = files.manifest_path(0)
PACK = files.pack_path(0)
SIGNATURE = files.signature_path(LAST)


def first_tensor(field: str, value: Value) -> Change:
    return edit(MANIFEST, lambda record: record["tensors"][0].__setitem__(field, value))


def swap_tensors(record: Any) -> None:
    record["tensors"][:2] = record["tensors"][1::-1]


def double_tensor(record: Any) -> None:
    record["tensors"][1] = record["tensors"][0]
    record["packs"][1] = record["packs"][0]


def parse(name: str, description: str, change: Change, message: str) -> Case:
    return Case(
        name=name,
        description=description,
        change=change,
        operation="open",
        error="TranscriptError",
        message=message,
    )


def bombs() -> list[tuple[str, str, bytes]]:
    """Few bytes that a general CBOR decoder turns into much work or memory."""
    shared = b"\x85\xd8\x1c\x80"  # tag 28 marks a value to share, tag 29 refers to one
    for level in range(4):
        shared += b"\xd8\x1c\x98\x64" + bytes([0xD8, 0x1D, level]) * 100
    big = b"\x59\x10\x00" + b"\xfe" * 4096
    exponent = b"\x1b" + (10**12).to_bytes(8, "big")
    text = b"\x79\x10\x00" + b"a" * 4096
    named = b"\xd9\x01\x00\x99\x04\x00" + text + b"\xd8\x19\x00" * 1023
    pattern = b"\xd8\x23\x79\x13\x88" + b"(a|b)" * 1000
    return [
        ("shared-values", "A value that holds another 100 times, four levels deep.", shared),
        ("string-references", "One text of 4 KiB, named 1023 times.", named),
        ("bignum", "An integer of 4 KiB.", b"\xc2" + big),
        ("negative-bignum", "A negative integer of 4 KiB.", b"\xc3" + big),
        ("decimal", "A decimal fraction of 10^(10^12).", b"\xc4\x82" + exponent + b"\x01"),
        ("decimal-bignum", "A decimal fraction of an integer of 4 KiB.", b"\xc4\x82\0\xc2" + big),
        ("bigfloat", "A float of 2^(10^12).", b"\xc5\x82" + exponent + b"\x01"),
        (
            "rational",
            "A quotient of two integers of 4 KiB.",
            b"\xd8\x1e" + b"\x82" + b"\xc2".join((b"", big, big)),
        ),
        ("regular-expression", "A pattern of 1000 groups.", pattern),
        (
            "claimed-array",
            "Arrays of 2^40 items in each other.",
            (b"\x9b" + (1 << 40).to_bytes(8, "big")) * 8,
        ),
        ("claimed-bytes", "A byte string of 2^40 bytes.", b"\x5b" + (1 << 40).to_bytes(8, "big")),
    ]


ACCEPTED = [
    Case(name="accepted", description="An honest run: three commits, tied and frozen weights."),
    Case(
        name="accepted-leftovers",
        description=(
            "Killed in its next commit: other files than the signed head are there. "
            "They are reported and are no part of the run."
        ),
        change=lambda run: run.update(
            {"leaves/000000000005": b"half", "checkpoints/.tmp-0123456789abcdef": b""}
        ),
    ),
]

MALFORMED = [
    parse("header-future-version", "Format version 2.", put(HEADER, "format", 2), "version 2"),
    parse("header-version-true", "True in place of 1.", put(HEADER, "format", True), "format"),
    parse("header-unknown-field", "A field more.", put(HEADER, "note", 1), "'note'"),
    parse(
        "header-missing-field",
        "A field less.",
        edit(HEADER, lambda record: record.pop("dataset_root")),
        "dataset_root is missing",
    ),
    parse("header-short-key", "31 bytes of key.", put(HEADER, "public_key", bytes(31)), "32 bytes"),
    parse("header-missing", "No header.", drop(HEADER), "header: missing"),
    parse("header-trailing-byte", "A byte more.", raw(HEADER, lambda d: d + b"\0"), "canonical"),
    parse(
        "header-long-integer",
        "numerics_version 1 in two bytes instead of one.",
        raw(HEADER, lambda d: d.replace(b"_version\x01", b"_version\x18\x01")),
        "canonical",
    ),
    parse(
        "header-indefinite-map",
        "The outer map without a length.",
        raw(HEADER, lambda d: b"\xbf" + d[1:] + b"\xff"),
        "canonical",
    ),
    parse(
        "header-duplicate-key",
        "numerics twice.",
        raw(HEADER, lambda d: bytes([d[0] + 1]) + encode("numerics") + encode("exact") + d[1:]),
        "canonical",
    ),
    parse("leaves-truncated", "A byte less.", raw(SEGMENT, lambda d: d[:-1]), "canonical"),
    parse("leaves-nested", "A million arrays.", add(SEGMENT, b"\x81" * 10**4), "canonical"),
    parse(
        "leaves-huge-array", "Claims 2^63 items.", add(SEGMENT, b"\x9b\x7f" + b"\xff" * 7), "CBOR"
    ),
    *(
        parse(f"bomb-{name}", description, add(SEGMENT, data), "CBOR")
        for name, description, data in bombs()
    ),
    parse("leaves-none", "An empty segment.", add(SEGMENT, encode([])), "expected an array of 1"),
    parse(
        "leaves-too-few",
        "Step 1 left out.",
        edit(SEGMENT, lambda leaves: leaves.pop(0)),
        "expected 2 leaves, got 1",
    ),
    parse(
        "leaves-out-of-order",
        "Steps 2, 1.",
        edit(SEGMENT, lambda leaves: leaves.reverse()),
        "expected the leaf of step 1, got 2",
    ),
    parse(
        "leaf-infinite-loss",
        "Loss infinity.",
        edit(SEGMENT, lambda leaves: leaves[0].update(loss=float("inf"))),
        "loss: expected a finite float",
    ),
    parse(
        "leaf-nan-loss",
        "Loss 0.5 replaced by NaN.",
        raw(SEGMENT, lambda d: d.replace(b"loss\xf9\x38\x00", b"loss\xf9\x7e\x00")),
        "canonical",
    ),
    parse(
        "leaf-integer-loss",
        "Loss 1 as an integer.",
        edit(SEGMENT, lambda leaves: leaves[0].update(loss=1)),
        "loss: expected a finite float",
    ),
    parse(
        "leaf-0-with-batch",
        "The initial state with a batch.",
        edit(files.segment_path(0), lambda leaves: leaves[0].update(batch=bytes(32))),
        "batch: expected nothing at step 0",
    ),
    parse("manifest-pickle", "A pickle.", add(MANIFEST, pickle.dumps({}, 4)), "canonical"),
    parse("manifest-other-step", "Of step 1.", put(MANIFEST, "step", 1), "step: expected 0, got 1"),
    parse("manifest-empty", "No tensors.", put(MANIFEST, "tensors", []), "tensors: expected 1 to"),
    parse(
        "manifest-unsorted",
        "Tensors out of order.",
        edit(MANIFEST, swap_tensors),
        "strictly rising",
    ),
    parse(
        "manifest-name-twice", "One name twice.", edit(MANIFEST, double_tensor), "strictly rising"
    ),
    parse("manifest-dtype", "dtype object.", first_tensor("dtype", "object"), "a known dtype"),
    parse("manifest-negative-size", "Shape (-1,).", first_tensor("shape", [-1]), "from 0 to"),
    parse(
        "manifest-huge-shape",
        "Shape (2^62, 2^62).",
        first_tensor("shape", [2**62] * 2),
        "too large",
    ),
    parse(
        "manifest-huge-empty-shape",
        "Shape (0, 2^62, 2^62): no bytes, but no tensor can have it.",
        first_tensor("shape", [0, 2**62, 2**62]),
        "too large",
    ),
    parse(
        "manifest-terabytes", "A state of 2^40 bytes.", first_tensor("shape", [2**38]), "a state of"
    ),
    parse(
        "manifest-pack-of-the-future",
        "A tensor in the pack of step 9.",
        edit(MANIFEST, lambda record: record["packs"].__setitem__(0, 9)),
        "packs: expected an integer from 0 to 0, got 9",
    ),
    parse(
        "head-other-size",
        "File of step 3, head of size 3.",
        signed(lambda run: run.update({SIGNATURE: run[files.signature_path(2)]})),
        "size: expected 4, got 3",
    ),
    parse("signature-short", "63 bytes.", put(SIGNATURE, "signature", bytes(63)), "64 bytes"),
    parse("file-unexpected", "A file that no format names.", add("notes.txt", b""), "unexpected"),
    parse(
        "file-of-no-commit",
        "Leaves of a step that has no head, before the last one.",
        add(files.segment_path(1), b""),
        "no signed head covers this file",
    ),
    parse("file-missing", "No pack.", drop(PACK), "safetensors: missing"),
]

FALSE_CHAIN = [
    Case(
        name="no-head",
        description="Interrupted before its first commit: nothing is claimed, nothing accepted.",
        change=lambda run: drop(*[path for path in run if path != HEADER])(run),
        operation="verify_signatures",
        message="no signed head",
    ),
    Case(
        name="signature-flipped",
        description="One bit of the last signature.",
        change=flip(SIGNATURE, -1),
        operation="verify_signatures",
        message="step 3: signature of the head: expected one by key",
    ),
    Case(
        name="signature-by-another-key",
        description="The last head, signed by someone else.",
        change=sign_with_another_key,
        operation="verify_signatures",
        message="step 3: signature of the head: expected one by key",
    ),
    Case(
        name="head-changed",
        description="Another root in the last head, the signature as it was.",
        change=edit(SIGNATURE, lambda record: record["head"].update(root=bytes(32))),
        operation="verify_signatures",
        message="step 3: signature of the head",
    ),
    Case(
        name="header-changed",
        description="Another learning rate in the header.",
        change=edit(HEADER, lambda record: record["job"]["config"].update(rate=0.2)),
        operation="verify_chain",
        message="step 0: run of the head: expected",
    ),
    Case(
        name="header-changed-and-signed",
        description="The same, all heads signed again; leaf 0 still follows the first header.",
        change=signed(edit(HEADER, lambda record: record["job"]["config"].update(rate=0.2))),
        operation="verify_chain",
        message="step 0: previous leaf: expected",
    ),
    Case(
        name="leaf-changed",
        description="Another loss in the leaf of step 1.",
        change=edit(SEGMENT, lambda leaves: leaves[0].update(loss=2.0)),
        operation="verify_chain",
        message="step 2: segment: expected",
    ),
    Case(
        name="leaf-changed-and-signed",
        description="The same, signed again; leaf 2 still follows the first leaf 1.",
        change=forge_leaf(1, relink=False, loss=2.0),
        operation="verify_chain",
        message="step 2: previous leaf: expected",
    ),
    Case(
        name="root-false",
        description="A signed head with a root of other leaves.",
        change=change_heads(root=bytes(32)),
        operation="verify_chain",
        message="step 3: root of the leaves: expected",
    ),
    Case(
        name="head-chain-broken",
        description="The last head does not follow the one before.",
        change=change_heads(previous=None),
        operation="verify_chain",
        message="step 3: previous head: expected",
    ),
]


def checkpoint(name: str, description: str, change: Change, message: str, **rest: Any) -> Case:
    return Case(
        name=name,
        description=description,
        change=change,
        operation="verify_checkpoint",
        message=message,
        **rest,
    )


MALFORMED_PACK = {"step": 0, "error": "TranscriptError"}

FALSE_CHECKPOINTS = [
    checkpoint(
        "manifest-changed",
        "Another shape in a manifest.",
        put(files.manifest_path(LAST), "packs", [0] * 10),
        "step 3: checkpoint: expected",
        step=LAST,
    ),
    checkpoint(
        "state-of-another-step",
        "A signed checkpoint with a tensor that the leaf did not record.",
        signed(claim_zero_weights),
        "step 3: state of the checkpoint: expected",
        step=LAST,
    ),
    checkpoint("weight-flipped", "One bit of a weight.", flip(PACK, -1), "step 0: tensor", step=0),
    checkpoint(
        "weight-under-false-digest",
        "A trainer signs a pack whose content is not that of its digest.",
        signed(other_bytes_under_a_digest),
        "step 0: tensor",
        step=0,
    ),
    checkpoint(
        "pack-of-no-checkpoint",
        "A manifest that refers to a pack of a step without a checkpoint.",
        signed(wrong_pack(1)),
        "there is no checkpoint at step 1, whose pack should hold it",
        step=LAST,
    ),
    checkpoint(
        "pack-without-the-tensor",
        "A manifest that refers to an earlier pack that does not hold the tensor.",
        signed(wrong_pack(0)),
        "the pack of step 0 should hold",
        step=LAST,
    ),
    checkpoint(
        "pack-stores-again",
        "A pack that holds what an earlier one holds, whole and as its manifest says.",
        signed(store_again),
        "the pack of step 0 is the first that holds its content: expected 0, got 3",
        step=LAST,
    ),
    checkpoint(
        "pack-truncated",
        "A byte less.",
        raw(PACK, lambda d: d[:-1]),
        "bytes, got",
        **MALFORMED_PACK,
    ),
    checkpoint(
        "pack-longer",
        "A byte more.",
        raw(PACK, lambda d: d + b"\0"),
        "bytes, got",
        **MALFORMED_PACK,
    ),
    checkpoint(
        "pack-pickle",
        "A pickle.",
        add(PACK, pickle.dumps({"model": 1}, 4)),
        "bytes, got",
        **MALFORMED_PACK,
    ),
    checkpoint(
        "pack-pickle-of-right-size",
        "A pickle, padded to the size of the pack.",
        raw(PACK, lambda d: pickle.dumps({"model": 1}, 4).ljust(len(d))),
        "header is not the one that the manifest prescribes, from byte 0",
        step=0,
    ),
    checkpoint(
        "pack-huge-header",
        "Claims a header of 2^63 bytes.",
        raw(PACK, lambda d: b"\xff" * 7 + b"\x7f" + d[8:]),
        "from byte 0",
        step=0,
    ),
    checkpoint(
        "pack-other-dtype",
        "A content as I8.",
        header_of_pack(lambda text: text.replace(b"U8", b"I8", 1)),
        "header is not the one",
        step=0,
    ),
    checkpoint(
        "pack-overlap",
        "All contents at the start of the file.",
        header_of_pack(lambda text: text.replace(b'"data_offsets":[', b'"data_offsets":[0')),
        "header is not the one",
        step=0,
    ),
    checkpoint(
        "pack-name-twice",
        "The name of the first content in place of the second's.",
        header_of_pack(lambda text: text.replace(text.split(b'"')[9], text.split(b'"')[1])),
        "header is not the one",
        step=0,
    ),
]

CASES = [*ACCEPTED, *MALFORMED, *FALSE_CHAIN, *FALSE_CHECKPOINTS]


def write_case(folder: Path, honest: Files, case: Case) -> None:
    run = dict(honest)
    case.change(run)
    fails = {"operation": case.operation, "error": case.error, "message": case.message}
    if case.step is not None:
        fails["step"] = case.step
    write_files(folder / case.name / "run", run)
    write_json(
        folder / case.name / "case.json",
        {"description": case.description, "fails": fails if case.operation else None},
    )


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def tensor_vectors() -> list[dict[str, object]]:
    """Name, dtype, shape and bytes of every tensor of a state, and what they are hashed to."""
    state = state_at(3)
    return [
        {
            "name": entry.name,
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "bytes": bytes(content(state[entry.name])).hex(),
            "digest": entry.digest.hex(),
            "entry": entry.to_bytes().hex(),
        }
        for entry in state_entries(state)
    ]


def merkle_vectors() -> list[dict[str, object]]:
    """Trees of the entries 00, 01, 02, ... with every proof."""
    trees: list[dict[str, object]] = []
    for size in (1, 2, 3, 5, 7, 8):
        entries = [bytes([index]) for index in range(size)]
        inclusion = [merkle.inclusion_proof(entries, index) for index in range(size)]
        consistency = [merkle.consistency_proof(entries, old) for old in range(1, size + 1)]
        trees.append(
            {
                "size": size,
                "root": merkle.root(entries).hex(),
                "inclusion": [[node.hex() for node in proof] for proof in inclusion],
                "consistency_from_1_on": [[node.hex() for node in proof] for proof in consistency],
            }
        )
    return trees


def record_vectors(honest: Files) -> dict[str, object]:
    """Single steps on the way from a tensor to a signature."""
    head = head_of(honest, LAST)
    entries: tuple[TensorEntry, ...] = state_entries(state_at(LAST))
    return {
        "digest of the bytes 616263 in the domain 'example'": digest("example", b"abc").hex(),
        "private key": bytes(range(32)).hex(),
        "public key": SIGNER.public_key.hex(),
        "fingerprint": SIGNER.fingerprint,
        "header digest": make_header().digest.hex(),
        "tensors of step 3": tensor_vectors(),
        "state root of step 3": state_root(entries).hex(),
        "head of step 3": head.to_bytes().hex(),
        "head digest of step 3": head.digest.hex(),
        "signature of the head of step 3": SIGNER.sign("head", head.to_bytes()).hex(),
        "trees of the entries 00, 01, 02, ...": merkle_vectors(),
    }


def write_vectors(folder: Path) -> None:
    """Write all vectors into `folder`, which must not hold any."""
    honest = make_run()
    write_json(folder / "records.json", record_vectors(honest))
    for case in CASES:
        write_case(folder / "runs", honest, case)


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    for part in ("records.json", "runs"):
        path = target / part
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    write_vectors(target)
