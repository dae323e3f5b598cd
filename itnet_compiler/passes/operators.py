"""What operators do to positions, as tables of names.

Names are those of ``operator_name``: ``add`` for ``aten.add.Tensor`` and ``aten.add_.Tensor``, with the namespace in
front where it is not ``aten``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.fx import Node

from .custom import CustomCall

__all__ = [
    "ALIASES",
    "CONTRACTIONS",
    "COPIES",
    "CREATIONS",
    "CUMULATIVE",
    "EMBEDDINGS",
    "EXTREMA",
    "FOURIER",
    "INDEXED",
    "LIKE",
    "LOSSES",
    "MIXING",
    "NORMALISATIONS",
    "POINTWISE",
    "RECURRENCES",
    "REDUCTIONS",
    "REINDEXING",
    "ROUTING",
    "SOFTMAXES",
    "STATISTICS",
    "SUPPORT",
    "VIEWS",
    "folds_nothing",
    "operator_name",
    "schema_name",
]


def operator_name(node: Node) -> str:
    """Name of the operator called, whatever its overload and whether in place or not."""
    target = node.target
    if isinstance(target, CustomCall):
        return "elementwise_function" if target.elementwise else str(target)
    return (
        schema_name(target) if isinstance(target, torch._ops.OpOverload) else str(getattr(target, "__name__", target))
    )


def schema_name(target: torch._ops.OpOverload) -> str:
    """``operator_name`` of the nodes that call ``target``."""
    space, name = target._schema.name.split("::")
    if name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return name if space == "aten" else f"{space}.{name}"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Not a computation on activations, whatever the arguments.
SUPPORT = _words(
    "sym_size sym_numel sym_stride sym_storage_offset size numel dim stride _assert_tensor_metadata _assert_async"
    " _assert_scalar sym_constrain_range sym_constrain_range_for_size item _local_scalar_dense is_nonzero"
    " _functional_assert_async is_floating_point is_complex equal"
)

# Depends on the shape of the argument only.
LIKE = _words(
    "zeros_like ones_like empty_like full_like rand_like randn_like randint_like new_zeros new_ones new_empty new_full"
    " new_empty_strided"
)

CREATIONS = _words(
    "zeros ones empty full rand randn randint randperm arange linspace logspace eye tril_indices triu_indices"
    " scalar_tensor hann_window hamming_window blackman_window normal empty_strided empty_permuted"
)

# Values copied or converted, not computed.
COPIES = _words(
    "to _to_copy type_as float double half bfloat16 int long bool clone contiguous alias detach lift lift_fresh"
    " lift_fresh_copy copy fill zero cpu cuda real imag resolve_conj resolve_neg requires_grad"
)

# y[x] is a function of the arguments' values at x alone, position by position and feature by feature.
POINTWISE = COPIES | _words(
    # arithmetic
    "abs add sub rsub mul div true_divide floor_divide remainder fmod pow float_power square sqrt rsqrt reciprocal neg"
    " negative sign sgn ceil floor round trunc frac fix addcmul addcdiv lerp maximum minimum fmax fmin hypot multiply"
    " subtract divide absolute positive copysign nextafter heaviside xlogy deg2rad rad2deg ldexp frexp"
    # transcendental
    " exp exp2 expm1 log log2 log10 log1p sin cos tan sinc asin acos atan atan2 sinh cosh asinh acosh atanh erf erfc"
    " erfinv lgamma digamma polygamma i0 special_expm1 special_erf special_erfc special_log1p special_ndtr"
    " logaddexp logaddexp2 arctan arctan2 arcsin arccos special_xlog1py special_entr"
    # activations
    " relu relu6 leaky_relu prelu elu celu selu gelu silu mish sigmoid special_expit tanh logit hardswish hardsigmoid"
    " hardtanh softplus softsign hardshrink softshrink tanhshrink threshold log_sigmoid rrelu"
    " _prelu_kernel rrelu_with_noise"
    # clamps, choices, comparisons
    " clamp clamp_min clamp_max clip nan_to_num where masked_fill eq ne lt le gt ge greater greater_equal less"
    " less_equal not_equal logical_and logical_or logical_not logical_xor bitwise_and bitwise_or bitwise_not"
    " bitwise_xor bitwise_left_shift bitwise_right_shift"
    " __and__ __or__ __xor__ __iand__ __ior__ __lshift__ __rshift__ isnan isinf"
    " isfinite isclose isposinf isneginf isin bucketize signbit"
    # random, pointwise in their argument
    " dropout feature_dropout alpha_dropout feature_alpha_dropout native_dropout bernoulli uniform exponential random"
    " poisson cauchy log_normal geometric"
    # complex numbers, quantisation
    " conj conj_physical _conj angle polar complex fake_quantize_per_tensor_affine fake_quantize_per_channel_affine"
    # a mask laid over the last two axes; a custom function (``CustomCall``) that says so
    " tril triu elementwise_function"
)

# Another view of the same values; a reshape counts as one, although it may have to copy.
VIEWS = _words(
    "view reshape _unsafe_view view_as reshape_as flatten unflatten ravel unsqueeze squeeze permute transpose t mT mH T"
    " H adjoint numpy_T matrix_H swapaxes swapdims movedim moveaxis expand expand_as broadcast_to broadcast_tensors"
    " split split_with_sizes chunk tensor_split hsplit vsplit unbind unsafe_chunk unsafe_split unsafe_split_with_sizes"
    " select slice narrow unfold diagonal view_as_real view_as_complex as_strided meshgrid getitem _reshape_alias"
    " atleast_1d atleast_2d atleast_3d"
)

# Pure moves of values between places.
REINDEXING = VIEWS | _words(
    "repeat tile repeat_interleave cat concat concatenate stack hstack vstack dstack column_stack row_stack pad"
    " constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d"
    " replication_pad3d _pad_circular _pad_enum roll flip fliplr flipud rot90 pixel_shuffle pixel_unshuffle"
    " channel_shuffle native_channel_shuffle im2col diag diag_embed diag_part slice_scatter select_scatter"
    " diagonal_scatter block_diag split_copy combinations cartesian_prod"
)

# Statistics over channels or over everything of a sample, then a pointwise map.
NORMALISATIONS = _words(
    "batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training layer_norm"
    " native_layer_norm group_norm native_group_norm instance_norm rms_norm _fused_rms_norm local_response_norm"
    " cudnn_batch_norm _batch_norm_impl_index _weight_norm renorm"
)

# Along one or more axes, which they keep.
SOFTMAXES = _words(
    "softmax log_softmax _softmax _log_softmax _safe_softmax softmin special_softmax special_log_softmax"
)
CUMULATIVE = _words("cumsum cumprod cummax cummin logcumsumexp diff glu")

# Also along axes that they keep, though perhaps not in their extent.
FOURIER = frozenset(f"fft_{name}{count}" for name in ("fft", "ifft", "rfft", "irfft") for count in ("", "2", "n"))

# Along one or more axes, which they remove.
STATISTICS = _words("mean sum var std var_mean std_mean norm linalg_vector_norm linalg_norm nansum nanmean")
EXTREMA = _words("amax amin aminmax max min")
REDUCTIONS = STATISTICS | EXTREMA | _words("prod logsumexp all any count_nonzero cosine_similarity special_logsumexp")

# Which value goes where depends on the values.
ROUTING = _words(
    "topk sort argsort argmax argmin kthvalue median nanmedian mode msort multinomial scatter scatter_add"
    " scatter_reduce masked_select masked_scatter nonzero nonzero_static unique unique_consecutive _unique2 unique_dim"
    " bincount histc index_add index_copy index_fill index_reduce searchsorted put _grouped_mm"
    " transformers.grouped_mm_fallback torchvision.nms"
)

# Re-indexing where the indices are fixed, routing where they depend on the input.
INDEXED = _words("index index_select gather take take_along_dim index_put _index_put_impl _unsafe_index")

EMBEDDINGS = _words("embedding embedding_bag")

# A comparison at each position, and at most a mean or sum of that: a number to train by, which no position takes.
LOSSES = _words(
    "mse_loss l1_loss smooth_l1_loss huber_loss soft_margin_loss kl_div nll_loss nll_loss2d nll_loss_nd"
    " cross_entropy_loss binary_cross_entropy binary_cross_entropy_with_logits poisson_nll_loss gaussian_nll_loss"
    " hinge_embedding_loss margin_ranking_loss multi_margin_loss multilabel_margin_loss cosine_embedding_loss"
    " triplet_margin_loss"
)

# Products summed over shared axes; ``contraction`` says which.
CONTRACTIONS = _words(
    "linear matmul mm bmm addmm baddbmm mv addmv dot vdot inner outer ger einsum tensordot linalg_matmul __matmul__"
)

RECURRENCES = _words(
    "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell quantized_lstm _thnn_fused_lstm_cell"
)

# Move information between positions by themselves: what it is, in words.
MIXING: dict[str, str] = {
    **dict.fromkeys(
        (
            "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution"
            " _convolution_mode conv_depthwise3d conv_tbc"
        ).split(),
        "convolution",
    ),
    **dict.fromkeys(
        (
            "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool1d_with_indices"
            " max_pool2d_with_indices max_pool3d_with_indices adaptive_avg_pool1d adaptive_avg_pool2d"
            " adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d"
            " adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d"
        ).split(),
        "pooling",
    ),
    **dict.fromkeys(
        (
            "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d"
            " _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d"
            " upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa"
        ).split(),
        "interpolation",
    ),
    **dict.fromkeys("grid_sampler grid_sampler_2d grid_sampler_3d".split(), "sampling at computed positions"),
    **dict.fromkeys(
        (
            "scaled_dot_product_attention _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention"
            " _scaled_dot_product_flash_attention_for_cpu _native_multi_head_attention"
            " _transformer_encoder_layer_fwd flex_attention"
        ).split(),
        "attention",
    ),
    **dict.fromkeys(sorted(RECURRENCES), "recurrence"),
    "col2im": "sum of overlapping windows",
    "cdist": "distances between pairs of positions",
    "torchvision.roi_align": "sampling at computed positions",
    "torchvision.deform_conv2d": "deformable convolution",
}

# Results that may be, or are, views of the first argument: what a later in-place write through them changes.
ALIASES = VIEWS | _words("pad to type_as contiguous alias detach lift_fresh lift fill copy zero real imag dropout")


def folds_nothing(given: Mapping[str, Any]) -> bool:
    """Whether a call of ``col2im``, by its arguments, adds nothing up: windows of one position."""
    ones = all(one == 1 for key in ("kernel_size", "stride") for one in given[key])
    return ones and not any(given["padding"])
