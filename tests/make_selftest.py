"""Choose the cases of `veritrain doctor` from the vectors: `python tests/make_selftest.py` writes
them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "vectors" / "numerics"
FILE = ROOT / "src" / "veritrain" / "training" / "selftest.json"

# File, operation, beginnings of names: the first case of each.
CHOSEN = {
    "products": [
        ("contraction", "mm", ["quantisation: tie to even, up", "quantisation: just above"]),
        ("contraction", "bmm", ["batch"]),
        ("contraction", "addmm", ["alpha 0.3, beta 0.7"]),
        ("contraction14", "mm", ["quantisation: tie to even, down to 2"]),
    ],
    "convolution": [
        ("contraction", "convolution", ["1-D, groups", "2-D, magnitudes"]),
        ("contraction", "convolution_backward", ["2-D, magnitudes", "2-D, dilation"]),
    ],
    "norms": [
        ("norms", "batch_norm", ["rows", "images"]),
        ("norms", "layer_norm", ["3 rows of 5"]),
        ("norms", "group_norm", ["2 groups"]),
    ],
    "softmax": [
        ("softmax", "softmax", ["axis 1", "axis 2"]),
        ("softmax", "log_softmax", ["axis 1", "axis 2"]),
        ("losses", "nll_loss", ["mean"]),
    ],
    "sums": [
        ("sums", "sum", ["tie to even, up", "negative tie"]),
        ("sums", "mean", ["tie to even, up"]),
        ("sums", "index_add", ["repeated rows, alpha 0.3"]),
        ("sums", "embedding_backward", ["padding"]),
    ],
    "pooling": [
        ("pooling", "avg_pool2d", ["kernel 2, stride 2", "kernel 3, stride 2"]),
        ("pooling", "max_pool2d_backward", ["kernel 2, stride 2"]),
    ],
    "optimisers": [
        ("optimisers", "sgd", ["nesterov"]),
        ("optimisers", "adam", ["Adam, 5 steps", "AdamW, 5 steps"]),
    ],
    "pointwise": [
        ("pointwise", "tanh_backward", ["values"]),
        ("pointwise", "softplus_backward", ["beta 0.3"]),
        ("pointwise", "power", ["values, exponent 0.5"]),
        ("pointwise", "glu", ["values"]),
    ],
}
PAIRS = 6  # of each elementary function, spread over its vectors


def chosen() -> dict[str, Any]:
    """What the file holds."""
    operations = {
        family: [case for choice in choices for case in cases(*choice)]
        for family, choices in CHOSEN.items()
    }
    pairs = json.loads((VECTORS / "elementary" / "cases.json").read_text())
    elementary = {name: found[:: max(1, len(found) // PAIRS)] for name, found in pairs.items()}
    random = json.loads((VECTORS / "random" / "cases.json").read_text())[0]
    return {"operations": operations, "elementary": elementary, "random": random}


def cases(file: str, operation: str, names: list[str]) -> list[dict[str, Any]]:
    """The first case of the operation for each beginning of a name."""
    vectors = json.loads((VECTORS / f"{file}.json").read_text())
    found = [
        next(
            case
            for case in vectors["cases"]
            if case["operation"] == operation and case["name"].startswith(name)
        )
        for name in names
    ]
    return [{"numerics": vectors["numerics"], **case} for case in found]


if __name__ == "__main__":
    FILE.write_text(json.dumps(chosen(), separators=(",", ":")) + "\n")
