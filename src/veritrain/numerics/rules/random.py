"""Random operators: every call takes the next key of the context's counter-based stream."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from veritrain.errors import NumericsError, UnsupportedOperatorError
from veritrain.numerics.cpu import elementary, philox
from veritrain.numerics.cpu.integers import sum_bits
from veritrain.numerics.keys.stream import KeyStream
from veritrain.numerics.platform.devices import elsewhere
from veritrain.numerics.rules.sums import reduce_sum
from veritrain.numerics.rules.table import Kind, aten, require_float32, rule


def _typed(values: Tensor, dtype: torch.dtype | None) -> Tensor:
    if dtype not in (None, torch.float32):
        raise UnsupportedOperatorError(f"random values of {dtype}: exact numerics draws float32")
    return values


@rule(Kind.RANDOM, aten.bernoulli_.float, takes_stream=True)
def _bernoulli_(stream: KeyStream, x: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    return x.copy_(philox.bernoulli(stream.next_key(), p, tuple(x.shape)))


@rule(Kind.RANDOM, aten.bernoulli.p, takes_stream=True)
def _bernoulli_p(stream: KeyStream, x: Tensor, p: float = 0.5, *, generator: Any = None) -> Tensor:
    return _bernoulli_(stream, torch.empty_like(x), p, generator=generator)


@rule(Kind.RANDOM, aten.bernoulli.default, takes_stream=True)
def _bernoulli(stream: KeyStream, p: Tensor, *, generator: Any = None) -> Tensor:
    if not bool(((p >= 0) & (p <= 1)).all()):
        raise NumericsError("bernoulli: probabilities must be within [0, 1]")
    return (philox.uniform24(stream.next_key(), tuple(p.shape)) < p).to(p.dtype)


@rule(Kind.RANDOM, aten.bernoulli_.Tensor, takes_stream=True)
def _bernoulli_tensor_(stream: KeyStream, x: Tensor, p: Tensor, *, generator: Any = None) -> Tensor:
    return x.copy_(_bernoulli(stream, p.expand(x.shape), generator=generator))


@rule(Kind.RANDOM, aten.native_dropout.default, takes_stream=True)
def _native_dropout(
    stream: KeyStream, x: Tensor, p: float, train: bool | None
) -> tuple[Tensor, Tensor]:
    if not train:
        return x.clone(), torch.ones(x.shape, dtype=torch.bool)
    kept = philox.bernoulli(stream.next_key(), 1 - p, tuple(x.shape))
    noise = kept.float() / (1 - p) if p < 1 else kept.float()
    # On a device F.dropout is this operator. Its gradient must be grad * noise as on the CPU, where
    # F.dropout is a product; `scale` of the backward operator is rounded otherwise.
    return x * noise, noise if elsewhere(x) else kept


@rule(Kind.COMPOSITE, aten.native_dropout_backward.default)
def _native_dropout_backward(grad: Tensor, kept: Tensor, scale: float) -> Tensor:
    return grad * (kept if kept.is_floating_point() else kept.float() * scale)


@rule(Kind.RANDOM, aten.uniform_.default, takes_stream=True)
def _uniform_(
    stream: KeyStream, x: Tensor, low: float = 0, high: float = 1, *, generator: Any = None
) -> Tensor:
    values = philox.uniform24(stream.next_key(), tuple(x.shape))
    return x.copy_(_typed(values * (high - low) + low, x.dtype))


@rule(Kind.RANDOM, aten.normal_.default, takes_stream=True)
def _normal_(
    stream: KeyStream, x: Tensor, mean: float = 0, std: float = 1, *, generator: Any = None
) -> Tensor:
    values = philox.normal(stream.next_key(), tuple(x.shape))
    return x.copy_(_typed(values * std + mean, x.dtype))


@rule(Kind.RANDOM, aten.normal.float_float, takes_stream=True)
def _normal_float(
    stream: KeyStream,
    mean: float,
    std: float,
    size: list[int],
    *,
    generator: Any = None,
    **options: Any,
) -> Tensor:
    return _normal_(stream, torch.empty(size, **_creation(options)), mean, std, generator=generator)


@rule(
    Kind.RANDOM, aten.normal.Tensor_Tensor, aten.normal.Tensor_float, aten.normal.float_Tensor,
    takes_stream=True,
)  # fmt: skip
def _normal_tensors(
    stream: KeyStream, mean: Any, std: Any = 1.0, *, generator: Any = None
) -> Tensor:
    tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
    require_float32("normal", *tensors)
    shape = torch.broadcast_shapes(*(value.shape for value in tensors))
    return philox.normal(stream.next_key(), shape) * std + mean


@rule(Kind.RANDOM, aten.rand.default, takes_stream=True)
def _rand(stream: KeyStream, size: list[int], **options: Any) -> Tensor:
    return _uniform_(stream, torch.empty(size, **_creation(options)))


@rule(Kind.RANDOM, aten.randn.default, takes_stream=True)
def _randn(stream: KeyStream, size: list[int], **options: Any) -> Tensor:
    return _normal_(stream, torch.empty(size, **_creation(options)))


@rule(Kind.RANDOM, aten.rand_like.default, takes_stream=True)
def _rand_like(stream: KeyStream, x: Tensor, **options: Any) -> Tensor:
    return _uniform_(stream, torch.empty_like(x, **options))


@rule(Kind.RANDOM, aten.randn_like.default, takes_stream=True)
def _randn_like(stream: KeyStream, x: Tensor, **options: Any) -> Tensor:
    return _normal_(stream, torch.empty_like(x, **options))


@rule(Kind.RANDOM, aten.randint.low, takes_stream=True)
def _randint_low(stream: KeyStream, low: int, high: int, size: list[int], **options: Any) -> Tensor:
    dtype = options.get("dtype") or torch.int64
    values = philox.integers(stream.next_key(), low, high, tuple(size))
    return values.to(dtype)


@rule(Kind.RANDOM, aten.randint.default, takes_stream=True)
def _randint(stream: KeyStream, high: int, size: list[int], **options: Any) -> Tensor:
    return _randint_low(stream, 0, high, size, **options)


@rule(Kind.RANDOM, aten.random_.default, takes_stream=True)
def _random_(stream: KeyStream, x: Tensor, *, generator: Any = None) -> Tensor:
    if x.is_floating_point():
        raise UnsupportedOperatorError("random_() on floating-point values: use torch.rand")
    return _random_from(stream, x, 0, torch.iinfo(x.dtype).max, generator=generator)


@rule(Kind.RANDOM, getattr(aten.random_, "from"), takes_stream=True)
def _random_from(
    stream: KeyStream, x: Tensor, low: int, high: int | None, *, generator: Any = None
) -> Tensor:
    high = torch.iinfo(torch.int64).max if high is None else high
    return x.copy_(philox.integers(stream.next_key(), low, high, tuple(x.shape)))


@rule(Kind.RANDOM, aten.random_.to, takes_stream=True)
def _random_to(stream: KeyStream, x: Tensor, high: int, *, generator: Any = None) -> Tensor:
    return _random_from(stream, x, 0, high, generator=generator)


_TINIEST = 2.0**-126


@rule(Kind.RANDOM, aten._standard_gamma.default, takes_stream=True)
def _standard_gamma(stream: KeyStream, shape: Tensor, generator: Any = None) -> Tensor:
    """Source: Marsaglia, Tsang: A simple method for generating gamma variables, 2000."""
    require_float32("_standard_gamma", shape)
    if not bool(((shape > 0) & (shape < math.inf)).all()):
        raise NumericsError("gamma distribution: its concentration must be positive and finite")
    small, size = shape < 1, tuple(shape.shape)
    d = torch.where(small, shape + 1, shape) - 1 / 3
    c = elementary.apply("rsqrt", d * 9)
    boost = elementary.apply("exp", _log_uniform(stream, size) / shape)
    result, waiting = torch.zeros_like(shape), torch.ones(size, dtype=torch.bool)
    while bool(waiting.any()):
        z = philox.normal(stream.next_key(), size)
        root = c * z + 1
        v = root * root * root
        bound = z * z * 0.5 + d - d * v + d * elementary.apply("log", v)
        accepted = (root > 0) & (_log_uniform(stream, size) < bound)
        result = torch.where(waiting & accepted, d * v, result)
        waiting = waiting & ~accepted
    return torch.where(small, result * boost, result).clamp_min(_TINIEST)


def _log_uniform(stream: KeyStream, size: tuple[int, ...]) -> Tensor:
    """Logarithms of uniform numbers in (0, 1]."""
    return elementary.apply("log", philox.uniform24(stream.next_key(), size) + 2.0**-24)


@rule(Kind.RANDOM, aten._sample_dirichlet.default, takes_stream=True)
def _sample_dirichlet(stream: KeyStream, shape: Tensor, generator: Any = None) -> Tensor:
    parts = _standard_gamma(stream, shape)
    return parts / reduce_sum(parts, [-1], keepdim=True)


@rule(Kind.RANDOM, aten.randperm.default, takes_stream=True)
def _randperm(stream: KeyStream, n: int, **options: Any) -> Tensor:
    words = philox.integers(stream.next_key(), -(2**62), 2**62, (n,))
    return torch.argsort(words, stable=True).to(options.get("dtype") or torch.int64)


@rule(Kind.RANDOM, aten.exponential_.default, takes_stream=True)
def _exponential_(
    stream: KeyStream, x: Tensor, lambd: float = 1, *, generator: Any = None
) -> Tensor:
    values = philox.exponential(stream.next_key(), tuple(x.shape))
    return x.copy_(_typed(values if lambd == 1 else values / lambd, x.dtype))


@rule(Kind.RANDOM, aten.multinomial.default, takes_stream=True)
def _multinomial(
    stream: KeyStream,
    weights: Tensor,
    num_samples: int,
    replacement: bool = False,
    *,
    generator: Any = None,
) -> Tensor:
    """The categories whose weight over an exponential variable is largest: a race.

    Samples with replacement are races of their own, with keys of their own; of float64 weights,
    which samplers of data sets have by the thousand, they are places in the running sum.
    """
    if weights.dtype != torch.float64:
        require_float32("multinomial", weights)
    races, places = (num_samples, 1) if replacement else (1, num_samples)
    _require_weights(weights, places)
    if replacement and weights.dtype == torch.float64:
        return _places_in_running_sum(stream, weights, num_samples)
    results: list[Tensor] = []
    for _ in range(races):
        speeds = weights / philox.exponential(stream.next_key(), tuple(weights.shape))
        if places == 1:  # without sorting
            results.append(speeds.argmax(-1, keepdim=True))
        else:
            ranks = torch.argsort(speeds, dim=-1, descending=True, stable=True)
            results.append(ranks.narrow(-1, 0, places))
    return torch.cat(results, -1)


def _places_in_running_sum(stream: KeyStream, weights: Tensor, num_samples: int) -> Tensor:
    """The first category whose running sum of integers is above a number drawn below the whole
    sum."""
    bits = sum_bits(weights.shape[-1])
    _, exponent = torch.frexp(weights.amax(-1, keepdim=True))
    whole = _times_power_of_two(weights, bits - exponent).round().long().cumsum(-1)
    shape = (*weights.shape[:-1], num_samples)
    drawn = philox.integers(stream.next_key(), 0, 1 << 63, shape)
    return torch.searchsorted(whole, drawn % whole[..., -1:], right=True)


def _times_power_of_two(x: Tensor, exponent: Tensor) -> Tensor:
    """x * 2**exponent, in two factors that float64 holds: exact, or rounded once below its normal
    numbers."""
    half = exponent.div(2, rounding_mode="floor")
    for part in (half, exponent - half):
        x = x * ((part.long() + 1023) << 52).view(torch.float64)
    return x


def _require_weights(weights: Tensor, needed: int) -> None:
    if not bool(((weights >= 0) & weights.isfinite()).all()):
        raise NumericsError("multinomial: weights must be finite and not negative")
    if bool(((weights > 0).sum(-1) < needed).any()):
        raise NumericsError(f"multinomial: fewer than {needed} categories have a weight above 0")


def _creation(options: dict[str, Any]) -> dict[str, Any]:
    """The options that torch.empty takes; another device or generator is refused by the mode."""
    return {"dtype": options.get("dtype") or torch.get_default_dtype()}
