"""Random operators: every call takes the next key of the context's counter-based stream."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from veritrain.errors import UnsupportedOperatorError
from veritrain.numerics import random
from veritrain.numerics.device import elsewhere
from veritrain.numerics.random import Stream
from veritrain.numerics.rules.table import Kind, aten, rule


def _typed(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype not in (None, torch.float32):
        raise UnsupportedOperatorError(f"random values of {dtype}: exact numerics draws float32")
    return values


@rule(Kind.RANDOM, aten.bernoulli_.float, takes_stream=True)
def _bernoulli_(stream: Stream, x: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    return x.copy_(random.bernoulli(stream.next_key(), p, tuple(x.shape)))


@rule(Kind.RANDOM, aten.bernoulli.p, takes_stream=True)
def _bernoulli_p(stream: Stream, x: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    return _bernoulli_(stream, torch.empty_like(x), p, generator=generator)


@rule(Kind.RANDOM, aten.bernoulli.default, takes_stream=True)
def _bernoulli(stream: Stream, p: Tensor, *, generator: Any = None) -> Tensor:
    return (random.uniform24(stream.next_key(), tuple(p.shape)) < p).to(p.dtype)


@rule(Kind.RANDOM, aten.bernoulli_.Tensor, takes_stream=True)
def _bernoulli_tensor_(stream: Stream, x: Tensor, p: Tensor, *, generator: Any = None) -> Tensor:
    return x.copy_(_bernoulli(stream, p.expand(x.shape), generator=generator))


@rule(Kind.RANDOM, aten.native_dropout.default, takes_stream=True)
def _native_dropout(
    stream: Stream, x: Tensor, p: float, train: bool | None
) -> tuple[Tensor, Tensor]:
    if not train:
        return x.clone(), torch.ones(x.shape, dtype=torch.bool)
    kept = random.bernoulli(stream.next_key(), 1 - p, tuple(x.shape))
    noise = kept.float() / (1 - p) if p < 1 else kept.float()
    # On a device F.dropout is this operator. Its gradient must be grad * noise as on the CPU, where
    # F.dropout is a product; `scale` of the backward operator is rounded otherwise.
    return x * noise, noise if elsewhere(x) else kept


@rule(Kind.COMPOSITE, aten.native_dropout_backward.default)
def _native_dropout_backward(grad: Tensor, kept: Tensor, scale: float) -> Tensor:
    return grad * (kept if kept.is_floating_point() else kept.float() * scale)


@rule(Kind.RANDOM, aten.uniform_.default, takes_stream=True)
def _uniform_(
    stream: Stream, x: Tensor, low: float = 0, high: float = 1, *, generator: Any = None
) -> Tensor:
    values = random.uniform24(stream.next_key(), tuple(x.shape))
    return x.copy_(_typed(values * (high - low) + low, x.dtype))


@rule(Kind.RANDOM, aten.normal_.default, takes_stream=True)
def _normal_(
    stream: Stream, x: Tensor, mean: float = 0, std: float = 1, *, generator: Any = None
) -> Tensor:
    values = random.normal(stream.next_key(), tuple(x.shape))
    return x.copy_(_typed(values * std + mean, x.dtype))


@rule(Kind.RANDOM, aten.normal.float_float, takes_stream=True)
def _normal_float(
    stream: Stream,
    mean: float,
    std: float,
    size: list[int],
    *,
    generator: Any = None,
    **options: Any,
) -> Tensor:
    return _normal_(stream, torch.empty(size, **_creation(options)), mean, std, generator=generator)


@rule(Kind.RANDOM, aten.rand.default, takes_stream=True)
def _rand(stream: Stream, size: list[int], **options: Any) -> Tensor:
    return _uniform_(stream, torch.empty(size, **_creation(options)))


@rule(Kind.RANDOM, aten.randn.default, takes_stream=True)
def _randn(stream: Stream, size: list[int], **options: Any) -> Tensor:
    return _normal_(stream, torch.empty(size, **_creation(options)))


@rule(Kind.RANDOM, aten.rand_like.default, takes_stream=True)
def _rand_like(stream: Stream, x: Tensor, **options: Any) -> Tensor:
    return _uniform_(stream, torch.empty_like(x, **options))


@rule(Kind.RANDOM, aten.randn_like.default, takes_stream=True)
def _randn_like(stream: Stream, x: Tensor, **options: Any) -> Tensor:
    return _normal_(stream, torch.empty_like(x, **options))


@rule(Kind.RANDOM, aten.randint.low, takes_stream=True)
def _randint_low(stream: Stream, low: int, high: int, size: list[int], **options: Any) -> Tensor:
    dtype = options.get("dtype") or torch.int64
    values = random.integers(stream.next_key(), low, high, tuple(size))
    return values.to(dtype)


@rule(Kind.RANDOM, aten.randint.default, takes_stream=True)
def _randint(stream: Stream, high: int, size: list[int], **options: Any) -> Tensor:
    return _randint_low(stream, 0, high, size, **options)


@rule(Kind.RANDOM, aten.random_.default, takes_stream=True)
def _random_(stream: Stream, x: Tensor, *, generator: Any = None) -> Tensor:
    if x.is_floating_point():
        raise UnsupportedOperatorError("random_() on floating-point values: use torch.rand")
    return _random_from(stream, x, 0, torch.iinfo(x.dtype).max, generator=generator)


@rule(Kind.RANDOM, getattr(aten.random_, "from"), takes_stream=True)
def _random_from(
    stream: Stream, x: Tensor, low: int, high: int | None, *, generator: Any = None
) -> Tensor:
    high = torch.iinfo(torch.int64).max if high is None else high
    return x.copy_(random.integers(stream.next_key(), low, high, tuple(x.shape)))


@rule(Kind.RANDOM, aten.random_.to, takes_stream=True)
def _random_to(stream: Stream, x: Tensor, high: int, *, generator: Any = None) -> Tensor:
    return _random_from(stream, x, 0, high, generator=generator)


@rule(Kind.RANDOM, aten.randperm.default, takes_stream=True)
def _randperm(stream: Stream, n: int, **options: Any) -> Tensor:
    words = random.integers(stream.next_key(), -(2**62), 2**62, (n,))
    return torch.argsort(words, stable=True).to(options.get("dtype") or torch.int64)


def _creation(options: dict[str, Any]) -> dict[str, Any]:
    """The options that torch.empty takes; another device or generator is refused by the mode."""
    return {"dtype": options.get("dtype") or torch.get_default_dtype()}
