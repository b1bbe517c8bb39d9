"""Operators whose own kernels already follow the definition on every machine.

MOVEMENT creates, moves, selects or compares values. IEEE is exactly one correctly rounded basic
operation per value; PyTorch's kernels of these were compared over instruction sets and thread
counts (tests/numerics/test_machines.py). Of CUDA's kernels `device.gate` says which follow it too,
and repairs the others. An operator of two roundings is not here: its kernel may fuse them.
"""

from __future__ import annotations

from veritrain.numerics.rules.table import Kind, as_is, aten, refuse

as_is(
    Kind.MOVEMENT,
    """
    alias as_strided clone contiguous copy detach detach_ lift lift_fresh lift_fresh_copy
    view _unsafe_view reshape _reshape_alias expand expand_as flatten unflatten
    permute transpose t numpy_T squeeze unsqueeze transpose_ t_ squeeze_ unsqueeze_ movedim
    select slice split split_with_sizes unsafe_split unsafe_split_with_sizes chunk unbind narrow
    diagonal diagonal_copy diag_embed cat stack hstack vstack repeat repeat_interleave roll flip
    tile unfold
    index index_select gather take masked_select masked_fill masked_fill_ masked_scatter
    index_fill scatter where select_scatter slice_scatter diagonal_scatter
    constant_pad_nd
    zeros zeros_like new_zeros ones ones_like new_ones full full_like new_full
    fill fill_ zero zero_ eye scalar_tensor _local_scalar_dense item
    tril triu tril_indices triu_indices nonzero one_hot bucketize searchsorted
    eq ne lt le gt ge logical_and logical_or logical_not logical_xor isnan isinf isfinite
    bitwise_and bitwise_or bitwise_not bitwise_xor __and__ __or__ __xor__ bitwise_left_shift
    bitwise_right_shift __lshift__ __rshift__
    equal is_nonzero is_same_size any all _is_all_true _is_any_true argmax argmin max min
    max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool2d adaptive_max_pool3d
    embedding sgn diagonal_backward
    threshold threshold_backward
    nan_to_num set_ pixel_shuffle pixel_unshuffle channel_shuffle im2col
    sym_size sym_stride sym_numel sym_storage_offset _assert_async _assert_scalar
    _has_compatible_shallow_copy_type _has_same_storage_numel _new_zeros_with_same_feature_meta
    slice_backward select_backward
    _pack_padded_sequence isin
    record_stream _pin_memory is_pinned
    """.split(),
)

as_is(
    Kind.IEEE,
    """
    mul div neg abs sign reciprocal floor ceil round trunc frac
    leaky_relu leaky_relu_backward
    """.split(),
)

refuse(
    aten.scatter.reduce,
    aten.scatter.value_reduce,
    because="use scatter_add, which sums exactly",
)
refuse(
    aten.round.decimals,
    because="it scales by powers of ten that are not exact; scale, round and scale back",
)
refuse(
    aten._amp_foreach_non_finite_check_and_unscale_.default,
    aten._amp_update_scale_.default,
    because="float32 needs no scaling of gradients; make the GradScaler with enabled=False",
)
