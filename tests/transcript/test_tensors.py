from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from veritrain.encoding import digest
from veritrain.errors import UsageError
from veritrain.transcript.records import DTYPE_BYTES
from veritrain.transcript.tensors import content, diff, empty, entry, state_entries, state_root

shapes = st.lists(st.integers(0, 5), max_size=4)


def make(dtype: str, shape: list[int], seed: int = 0) -> tuple[Tensor, bytes]:
    """A tensor of random bits and its bytes, by NumPy rather than by the code under test."""
    count = int(np.prod(shape, dtype=np.int64)) * DTYPE_BYTES[dtype]
    high = 2 if dtype == "bool" else 256
    raw = np.random.default_rng(seed).integers(0, high, count, dtype=np.uint8).tobytes()
    flat = torch.tensor(list(raw), dtype=torch.uint8).view(getattr(torch, dtype))
    return flat.reshape(shape), raw


@given(st.sampled_from(sorted(DTYPE_BYTES)), shapes, st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_an_entry_covers_name_dtype_shape_and_little_endian_bytes(
    dtype: str, shape: list[int], seed: int
) -> None:
    tensor, raw = make(dtype, shape, seed)
    found = entry("name", tensor)
    assert (found.name, found.dtype, found.shape) == ("name", dtype, tuple(shape))
    assert found.num_bytes == len(raw)
    assert found.digest == digest("tensor", raw)


@pytest.mark.parametrize(
    "view",
    [
        torch.arange(12.0).reshape(3, 4)[:, ::2],
        torch.tensor([1.0]).expand(5),
        torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last),
        torch.arange(6.0)[3:],
        torch.ones(4)[::4],
        torch.ones(4, 4)[::4, ::4],
        torch.ones(5)[5:][::2],
        torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t(),
        torch.imag(torch.tensor([1 + 2j, 3 - 4j]).conj()),  # a lazily negated view
    ],
    ids=[
        "strided",
        "expanded",
        "channels last",
        "offset",
        "one of four",
        "one of 16",
        "none",
        "permuted",
        "turned",
        "negated",
    ],
)
def test_views_are_digested_by_their_elements(view: Tensor) -> None:
    copy = torch.tensor(view.tolist(), dtype=view.dtype).reshape(view.shape)
    assert entry("x", view) == entry("x", copy)


def test_parameters_and_tensors_with_gradient_are_digested_without_a_copy() -> None:
    layer = nn.Linear(3, 4)
    before = entry("w", layer.weight)
    view = content(layer.weight)
    with torch.no_grad():
        layer.weight.add_(1)
    assert digest("tensor", view) == entry("w", layer.weight).digest != before.digest


def test_every_single_bit_counts() -> None:
    nan, other_nan = torch.tensor([0x7FC00000, 0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert entry("x", torch.tensor(0.0)) != entry("x", torch.tensor(-0.0))
    assert entry("x", nan) != entry("x", other_nan)


def test_dtype_and_shape_count_where_bytes_are_equal() -> None:
    zeros = [torch.zeros(4), torch.zeros(2, 2), torch.zeros(4, dtype=torch.int32)]
    found = [entry("x", tensor) for tensor in zeros]
    assert len({item.digest for item in found}) == 1
    assert len({state_root([item]) for item in found}) == 3


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.eye(2).to_sparse(), "expected a dense tensor"),
        (torch.empty(2, device="meta"), "got meta"),
        (torch.zeros(2, dtype=torch.complex64), "complex64 cannot be part"),
        (torch.empty(2, dtype=torch.float8_e8m0fnu), "e8m0fnu cannot be part"),
        (torch.nested.as_nested_tensor([torch.ones(2)], layout=torch.jagged), "got nested"),
    ],
    ids=["sparse", "meta", "complex", "odd float", "nested"],
)
def test_other_kinds_of_tensors_are_refused_by_name(tensor: Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=f"'model/odd': .*{message}"):
        entry("model/odd", tensor)


def test_entries_are_sorted_by_name() -> None:
    state = {name: torch.ones(1) for name in ("b", "a", "a/b", "é", "Z")}
    assert [item.name for item in state_entries(state)] == ["Z", "a", "a/b", "b", "é"]


@given(st.sampled_from(sorted(DTYPE_BYTES)), shapes)
@settings(max_examples=60, deadline=None)
def test_bytes_go_back_into_an_equal_tensor(dtype: str, shape: list[int]) -> None:
    tensor, raw = make(dtype, shape, seed=3)
    again, into = empty(entry("x", tensor))
    into[:] = raw
    assert entry("x", again) == entry("x", tensor)
    assert again.dtype == tensor.dtype
    assert again.shape == tensor.shape


def test_diff_names_the_first_difference() -> None:
    left = state_entries({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2)})
    right = state_entries({"a": torch.ones(2), "b": torch.zeros(2), "d": torch.ones(2)})
    assert diff(left, left) is None
    first = diff(left, right)
    assert first is not None
    assert first.name == "b"
    assert left[1].digest.hex() in str(first)
    assert right[1].digest.hex() in str(first)
    assert "got no such tensor" in str(diff(left, left[:2]))
    assert "expected no such tensor" in str(diff(left[:2], left))


def test_many_small_tensors_are_cheap() -> None:
    state = {f"tensor {index}": torch.randn(64) for index in range(200)}
    best = float("inf")
    for _ in range(20):
        start = time.process_time()
        state_entries(state)
        best = min(best, time.process_time() - start)
    assert best < 0.010  # seconds; about 0.0017 on an idle core
