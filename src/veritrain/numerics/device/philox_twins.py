"""Random numbers in torch operations: the twin of the fills in `cpu.philox`.

Philox4x32-10 on words of 32 bits in int64 registers. Products wrap modulo 2^64, which is where
their upper half lies: shifting right fills with sign bits, and the mask takes them off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from veritrain.numerics.cpu import philox
from veritrain.numerics.device import fused
from veritrain.numerics.platform.devices import twin_of

_MASK = 0xFFFFFFFF


def words(key: int, count: int, device: torch.device) -> Tensor:
    """The first `count` words of a key's stream, int64."""
    block = torch.arange(-(-count // 4), dtype=torch.int64, device=device)
    a, b = block & _MASK, block >> 32
    c = d = torch.zeros_like(block)
    k, m = key & _MASK, key >> 32
    for _ in range(10):
        p, q = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = (
            ((q >> 32) & _MASK) ^ b ^ k,
            q & _MASK,
            ((p >> 32) & _MASK) ^ d ^ m,
            p & _MASK,
        )
        k, m = (k + 0x9E3779B9) & _MASK, (m + 0xBB67AE85) & _MASK
    return torch.stack([a, b, c, d], 1).view(-1)[:count]


@twin_of(philox.uniform24_on)
def uniform24_on(key: int, shape: Sequence[int], device: torch.device) -> Tensor:
    count = math.prod(shape)
    if fused.serves(device):
        return fused.uniform24(key, count, device).reshape(tuple(shape))
    top = words(key, count, device) >> 8
    return (top.float() * 2.0**-24).reshape(tuple(shape))
