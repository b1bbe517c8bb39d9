"""A second reader, written from docs/format.md alone, agrees with the product's on an honest run.

It imports nothing of the product but the maker of the run.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import blake3
import cbor2
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from run_builder import Files, make_carrying_run, make_run, state_at

SIZES = {"bool": 1, "bfloat16": 2, "float32": 4, "int64": 8}


def digest(domain: str, data: bytes) -> bytes:
    return blake3.blake3(data, derive_key_context="veritrain v1 " + domain).digest()


def record(data: bytes, type_name: str) -> dict[str, Any]:
    value = cbor2.loads(data)
    assert cbor2.dumps(value, canonical=True) == data
    assert value["type"] == type_name
    return value


def tree(entries: list[bytes]) -> bytes:
    if len(entries) == 1:
        return hashlib.sha256(b"\0" + entries[0]).digest()
    split = max(1 << power for power in range(32) if 1 << power < len(entries))
    return hashlib.sha256(b"\1" + tree(entries[:split]) + tree(entries[split:])).digest()


def read_pack(data: bytes) -> dict[bytes, bytes]:
    size = int.from_bytes(data[:8], "little")
    text, rest = data[8 : 8 + size], data[8 + size :]
    header = json.loads(text)
    tight = json.dumps(header, separators=(",", ":")).encode()
    assert text == tight + b" " * (-len(tight) % 8)
    contents: dict[bytes, bytes] = {}
    position = 0
    for name in sorted(header):
        begin, end = header[name]["data_offsets"]
        assert header[name] == {
            "dtype": "U8",
            "shape": [end - begin],
            "data_offsets": [position, end],
        }
        contents[bytes.fromhex(name)] = rest[begin:end]
        position = end
    assert position == len(rest)
    return contents


def read_carried(run: Files, header: dict[str, Any], key: Ed25519PublicKey) -> int:
    """Check the optional files; return how many there are."""
    if "sources" in run:
        found = record(run["sources"], "sources")["files"]
        claimed = header["job"]["sources"]
        assert {name: digest("source", data) for name, data in found.items()} == claimed
    if "records" in run:
        records = record(run["records"], "records")
        assert records["run"] == digest("header", run["header"])
        digests = [records["digests"][i : i + 32] for i in range(0, len(records["digests"]), 32)]
        assert len(digests) == header["dataset_count"]
        assert tree(digests) == header["dataset_root"]
        numbers = np.frombuffer(records["form_numbers"], "<u2")
        assert len(numbers) == len(digests)
        assert all(number < len(records["forms"]) for number in numbers)
        signature = records.pop("signature")
        unsigned = cbor2.dumps(records, canonical=True)
        key.verify(
            signature, b"veritrain v1 signature\0" + digest("signature of records", unsigned)
        )
    return len({"sources", "records"} & run.keys())


def read_run(run: Files) -> dict[int, dict[str, bytes]]:
    """Check everything of section 6; return the contents of every tensor of every checkpoint."""
    header = record(run["header"], "header")
    assert header["format"] == 1
    key = Ed25519PublicKey.from_public_bytes(header["public_key"])
    encoded_leaves: list[bytes] = []
    leaves: list[dict[str, Any]] = []
    packs: dict[int, dict[bytes, bytes]] = {}
    states: dict[int, dict[str, bytes]] = {}
    previous_head = None
    previous_leaf = digest("header", run["header"])
    steps = sorted(int(path[11:]) for path in run if path.startswith("signatures/"))
    assert len(run) == 1 + 4 * len(steps) + read_carried(run, header, key)
    for step in steps:
        name = f"{step:012d}"
        signed = record(run[f"signatures/{name}"], "signed head")
        head = signed["head"]
        encoded = cbor2.dumps(head, canonical=True)
        message = b"veritrain v1 signature\0" + digest("signature of head", encoded)
        key.verify(signed["signature"], message)
        assert head["run"] == digest("header", run["header"])
        assert head["previous"] == previous_head
        assert head["size"] == step + 1
        assert head["segment"] == digest("segment", run[f"leaves/{name}"])
        for leaf in cbor2.loads(run[f"leaves/{name}"]):
            assert leaf["step"] == len(leaves)
            assert leaf["previous"] == previous_leaf
            leaves.append(leaf)
            encoded_leaves.append(cbor2.dumps(leaf, canonical=True))
            previous_leaf = digest("leaf", encoded_leaves[-1])
        assert len(leaves) == step + 1
        assert head["root"] == tree(encoded_leaves)
        manifest = run[f"checkpoints/{name}.manifest"]
        assert head["checkpoint"] == digest("checkpoint", manifest)
        packs[step] = read_pack(run[f"checkpoints/{name}.safetensors"])
        states[step] = read_state(record(manifest, "checkpoint"), packs, leaves[step]["state"])
        previous_head = digest("head", encoded)
    return states


def read_state(
    checkpoint: dict[str, Any], packs: dict[int, dict[bytes, bytes]], root: bytes
) -> dict[str, bytes]:
    tensors = checkpoint["tensors"]
    assert tree([cbor2.dumps(tensor, canonical=True) for tensor in tensors]) == root
    state: dict[str, bytes] = {}
    for tensor, pack in zip(tensors, checkpoint["packs"], strict=True):
        content = packs[pack][tensor["digest"]]
        assert len(content) == int(np.prod(tensor["shape"])) * SIZES[tensor["dtype"]]
        assert digest("tensor", content) == tensor["digest"]
        state[tensor["name"]] = content
    return state


def test_a_reader_written_from_the_specification_agrees() -> None:
    states = read_run(make_run())
    assert sorted(states) == [0, 2, 3]
    for step, state in states.items():
        expected = state_at(step)
        assert sorted(state) == sorted(expected)
        for name, tensor in expected.items():
            plain = tensor.float() if tensor.dtype.is_floating_point else tensor
            if str(tensor.dtype) == "torch.bfloat16":  # the upper half of a float32
                bits = np.frombuffer(state[name], "<u2").astype("<u4") << 16
                assert bits.tobytes() == plain.numpy().tobytes()
            else:
                assert state[name] == plain.numpy().tobytes()


def test_what_a_run_carries_is_read_from_the_specification_too() -> None:
    assert sorted(read_run(make_carrying_run())) == [0, 2, 3]
    assert {"sources", "records"} <= make_carrying_run().keys()
