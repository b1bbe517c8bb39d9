"""Matrix products on a device: the twin of `cpu.matmul`.

Integers are float64; a product of integers is exact in any order while its sums stay within 2**53,
which the widths see to.
"""

from __future__ import annotations

import torch
from torch import Tensor

from veritrain.numerics.cpu import matmul
from veritrain.numerics.device.integer_twins import quantise, rescale
from veritrain.numerics.platform.devices import twin_of


@twin_of(matmul.batched)
def batched(a_pmk: Tensor, b_pkn: Tensor, bits: int) -> Tensor:
    (num_p, num_m, inner), num_n = a_pmk.shape, b_pkn.shape[2]
    a, a_scale = quantise(a_pmk.contiguous(), (1, 1, num_p * num_m, inner), bits)
    b, b_scale = quantise(b_pkn.contiguous(), (num_p, inner, num_n, 1), bits)
    return rescale(torch.bmm(a, b), a_scale.view(num_p, num_m), b_scale)
