"""`exact` numerics on tensors outside the CPU's memory: the same definitions, the same bits.

A module `X_twins` holds the twins of functions in `cpu`: same arguments, same bits
(`platform.devices`). Importing this package registers all of them.

The twins use operations whose result IEEE 754 or integer arithmetic fixes on any device: single
additions, multiplications, divisions and casts; integer sums; bit patterns; matrix products of
integers in float64. Each operation is a kernel of its own, so that nothing can be contracted into a
fused multiply-add. Where Triton is installed, `fused` has faster twins of the same bits. `gate`
admits nothing else on a device (docs/decisions/009-cuda.md).
"""

from veritrain.numerics.device import (
    convolution_twins,
    elementary_twins,
    integer_twins,
    matmul_twins,
    norm_twins,
    philox_twins,
    softmax_twins,
    sum_twins,
    update_twins,
)

TWINS = (
    convolution_twins,
    elementary_twins,
    integer_twins,
    matmul_twins,
    norm_twins,
    philox_twins,
    softmax_twins,
    sum_twins,
    update_twins,
)
