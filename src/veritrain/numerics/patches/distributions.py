"""Distributions of numpy's global generator and of `random`: exact under exact numerics, or
refused.

Their uniform numbers and integers are the same on every machine. Other distributions go through the
C library's `log`, `exp` and `pow`, whose last bit differs. Those of numpy that training uses most
are drawn from torch here; the others are refused. Generators that a job makes
(`numpy.random.default_rng(7)`) are not reached.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from veritrain.errors import JobError
from veritrain.numerics.patches.replaced import Replacement, replaced

_REFUSED: tuple[tuple[Any, str], ...] = (
    (np.random,
        "binomial chisquare dirichlet f geometric gumbel hypergeometric laplace logistic"),
    (np.random,
        "logseries multinomial multivariate_normal negative_binomial noncentral_chisquare"),
    (np.random,
        "noncentral_f pareto poisson power rayleigh standard_cauchy standard_t triangular"),
    (np.random, "vonmises wald weibull zipf"),
    (random, "betavariate gammavariate paretovariate weibullvariate"),
    (random.Random, "betavariate gammavariate paretovariate weibullvariate"),
)  # fmt: skip


def exact_distributions() -> AbstractContextManager[None]:
    """Within it, and within exact numerics, the distributions of numpy and `random` are exact."""
    return replaced(
        [_drawn(name, draw) for name, draw in _DRAWN.items()]
        + [_refused(owner, name) for owner, names in _REFUSED for name in names.split()]
    )


def _drawn(name: str, draw: Callable[..., Any]) -> Replacement:
    def drawn(*arguments: Any, **options: Any) -> Any:
        with torch.device("cpu"):
            return draw(*arguments, **options)

    return Replacement.by(np.random, name, drawn)


def _refused(owner: Any, name: str) -> Replacement:
    def refused(*arguments: Any, **options: Any) -> Any:
        raise JobError(
            f"{name} of random or numpy.random computes with the C library, which differs between"
            " machines; draw from torch (torch.randn, torch.distributions.Beta) or a normal,"
            " exponential, gamma or beta distribution of numpy.random"
        )

    return Replacement.by(owner, name, refused)


def _shape(size: Any, *parameters: Any) -> tuple[int, ...]:
    if size is None:
        return np.broadcast_shapes(*(np.shape(parameter) for parameter in parameters))
    return (int(size),) if np.ndim(size) == 0 else tuple(int(n) for n in size)


def _float64(values: Tensor) -> Any:
    """As numpy gives them: an array, or a number where the shape is ()."""
    return values.double().numpy() if values.ndim else float(values)


def _standard_normal(size: Any = None) -> Any:
    return _float64(torch.randn(_shape(size), dtype=torch.float32))


def _randn(*size: int) -> Any:
    return _standard_normal(size)


def _normal(loc: Any = 0.0, scale: Any = 1.0, size: Any = None) -> Any:
    return loc + scale * _standard_normal(_shape(size, loc, scale))


def _standard_exponential(size: Any = None) -> Any:
    return _float64(-torch.log1p(-torch.rand(_shape(size), dtype=torch.float32)))


def _exponential(scale: Any = 1.0, size: Any = None) -> Any:
    return scale * _standard_exponential(_shape(size, scale))


def _lognormal(mean: Any = 0.0, sigma: Any = 1.0, size: Any = None) -> Any:
    return _float64(torch.exp(torch.as_tensor(_normal(mean, sigma, size)).float()))


def _gamma(shape: Any, scale: Any = 1.0, size: Any = None) -> Any:
    concentration = torch.as_tensor(shape).float().expand(_shape(size, shape, scale))
    return scale * _float64(torch._standard_gamma(concentration))  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]


def _standard_gamma(shape: Any, size: Any = None) -> Any:
    return _gamma(shape, 1.0, size)


def _beta(a: Any, b: Any, size: Any = None) -> Any:
    drawn = _shape(size, a, b)
    first, second = _gamma(a, 1.0, drawn), _gamma(b, 1.0, drawn)
    return first / (first + second)


_DRAWN: dict[str, Callable[..., Any]] = {
    "standard_normal": _standard_normal, "randn": _randn, "normal": _normal,
    "standard_exponential": _standard_exponential, "exponential": _exponential,
    "lognormal": _lognormal,
    "gamma": _gamma, "standard_gamma": _standard_gamma, "beta": _beta,
}  # fmt: skip
