"""The rules of `exact` numerics, one module per kind of operator.

Importing this package registers all of them; `lookup` finds the rule of an ATen operator.
"""

from veritrain.numerics.rules import (
    activations,
    as_is,
    bounds,
    contraction,
    embedding,
    linalg,
    losses,
    normalisation,
    optimisers,
    order,
    pointwise,
    pooling,
    random,
    resampling,
    sums,
)
from veritrain.numerics.rules.table import (
    Kind,
    Rule,
    covered,
    lookup,
    random_operator,
    short_name,
)

ROOMS = (
    activations,
    as_is,
    bounds,
    contraction,
    embedding,
    linalg,
    losses,
    normalisation,
    optimisers,
    order,
    pointwise,
    pooling,
    random,
    resampling,
    sums,
)

__all__ = ["ROOMS", "Kind", "Rule", "covered", "lookup", "random_operator", "short_name"]
