"""Layers that fix what their axes mean: convolution, pooling, normalisation, embedding, attention, recurrence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from ..match import bind
from ..operators import NORMALISATIONS, operator_name
from .algebra import Axis, AxisRole, axis
from .rules import Axes, AxisRule, Lookup, input_convention, is_model_input, on, resize, shape, source_of, unknown

__all__ = ["conv_like", "recurrent", "scaled_attention"]

BATCH, POSITION, FEATURE = AxisRole.BATCH, AxisRole.POSITION, AxisRole.FEATURE


def conv_like(source: list[Axis], sizes: Sequence[Any], spatial: int, *, new_features: bool) -> list[Axis]:
    """Axes of a layer over [B, F, P …] or, unbatched, [F, P …]. Axes already known keep their role."""
    lead = len(source) - spatial
    if lead == 2 and len(source[0].factors) == 1:
        source[0].settle(BATCH)
    if lead in (1, 2):
        source[lead - 1].settle(FEATURE)
    for one in source[lead:]:
        one.settle(POSITION)
    result = [resize(one, size) for one, size in zip(source[:lead], sizes[:lead], strict=True)]
    if new_features and lead:
        result[-1] = axis(sizes[lead - 1], FEATURE)
    for one, size in zip(source[lead:], sizes[lead:], strict=True):
        # a convolution along channels leaves channels; along anything that holds positions, positions
        channels = one.roles == {FEATURE}
        result.append(resize(one, size) if len(one.factors) == 1 else axis(size, FEATURE if channels else POSITION))
    return result


def _spatial_layer(new_features: bool) -> AxisRule:
    def spatial_layer(node: Node, look: Lookup) -> Axes:
        name, source, value = operator_name(node), look(source_of(node)), node.meta["val"]
        digits = [int(letter) for letter in name if letter.isdigit()]
        spatial = digits[-1] if digits else len(source) - 2
        if isinstance(value, Tensor):
            return conv_like(source, list(value.shape), spatial, new_features=new_features)
        return [conv_like(source, list(item.shape), spatial, new_features=new_features) for item in value]

    return spatial_layer


_POOLS = [f"{kind}_pool{n}d" for kind in ("avg", "max", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)]
_UPSAMPLES = "nearest1d nearest2d nearest3d linear1d bilinear2d trilinear3d bicubic2d"
on(*(f"conv{n}d" for n in (1, 2, 3)), *(f"conv_transpose{n}d" for n in (1, 2, 3)))(_spatial_layer(True))
on(*_POOLS, *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)))(_spatial_layer(False))
on(*(f"upsample_{kind}" for kind in _UPSAMPLES.split()))(_spatial_layer(False))
on(*(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)))(_spatial_layer(False))
on("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")(_spatial_layer(False))


@on("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def grid_sampler(node: Node, look: Lookup) -> Axes:
    """Batch and features of the source, positions of the result."""
    source, sizes = look(source_of(node)), shape(node)
    conv_like(source, shape(source_of(node)), len(sizes) - 2, new_features=False)
    return [*source[:2], *(axis(size, POSITION) for size in sizes[2:])]


@on("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(node: Node, look: Lookup) -> Axes:
    """Features become positions, or the reverse."""
    source, sizes = look(source_of(node)), shape(node)
    for one, role in zip(source[-3:], (FEATURE, POSITION, POSITION), strict=True):
        one.settle(role)
    roles = (FEATURE, POSITION, POSITION)
    return [*source[:-3], *(axis(size, role) for size, role in zip(sizes[-3:], roles, strict=True))]


@on("im2col", "col2im")
def windows(node: Node, look: Lookup) -> Axes:
    """Windows are features at each place; a fold is an image again."""
    source, sizes = look(source_of(node)), shape(node)
    roles = (FEATURE, POSITION) if operator_name(node) == "im2col" else (FEATURE, POSITION, POSITION)
    tail = [axis(size, role) for size, role in zip(sizes[-len(roles) :], roles, strict=True)]
    if len(sizes) > len(roles):
        source[0].settle(BATCH)
        return [source[0], *tail]
    return tail


@on(*NORMALISATIONS)
def normalisation(node: Node, look: Lookup) -> Axes:
    """Axes are kept; layer_norm and rms_norm act on the last ones, all others on [B, F, P …]."""
    given, name = bind(node), operator_name(node)
    source = look(source_of(node))
    if name in ("layer_norm", "rms_norm", "native_layer_norm", "_fused_rms_norm"):
        normalised = given["normalized_shape"]
        count = len(normalised) if isinstance(normalised, (list, tuple)) else 1
        for one in source[len(source) - count :]:
            one.settle(FEATURE)
        if count == 1:
            input_convention(source)
    elif "weight_norm" not in name and len(source) > 1:
        for one, role in zip(source, (BATCH, FEATURE), strict=False):
            one.settle(role)
        for one in source[2:]:
            one.settle(POSITION)
    value = node.meta["val"]
    return source if isinstance(value, Tensor) else [source, *unknown(node)[1:]]


@on("embedding", "embedding_bag")
def embedding(node: Node, look: Lookup) -> Axes:
    """Indices' axes, then features. A model input of indices is [B, L]."""
    index = look(bind(node)["indices"])
    if operator_name(node) == "embedding_bag":
        return unknown(node)
    if len(index) == 2 and all(is_model_input(one) for one in index):
        index[0].settle(BATCH)
        index[1].settle(POSITION)
    return [*index, axis(shape(node)[-1], FEATURE)]


@on("one_hot")
def one_hot(node: Node, look: Lookup) -> Axes:
    """A feature for each class."""
    return [*look(source_of(node)), axis(shape(node)[-1], FEATURE)]


def scaled_attention(query: list[Axis], key: list[Axis], value: list[Axis], size: Any) -> list[Axis]:
    """Queries' axes with the values' features; [..., L, D] is (..., position, feature)."""
    for operand in (query, key, value):
        operand[-1].settle(FEATURE)
        if len(operand) > 1:
            operand[-2].settle(POSITION)
        if len(operand) > 2 and is_model_input(operand[0]):
            operand[0].settle(BATCH)
    last = value[-1] if value[-1].role is FEATURE else axis(size, FEATURE)
    return [*query[:-1], last]


@on("scaled_dot_product_attention")
def attention(node: Node, look: Lookup) -> Axes:
    """Axes of ``scaled_attention``."""
    given = bind(node)
    return scaled_attention(look(given["query"]), look(given["key"]), look(given["value"]), shape(node)[-1])


def recurrent(source: list[Axis], node: Node, *, batch_first: bool, step: bool) -> Axes:
    """(output, h[, c]) of a recurrent layer, or h[, c] of one step."""
    roles = (BATCH, FEATURE) if step else (BATCH, POSITION, FEATURE) if batch_first else (POSITION, BATCH, FEATURE)
    if len(source) != len(roles):
        return unknown(node)
    for one, role in zip(source, roles, strict=True):
        one.settle(role)
    batch = source[roles.index(BATCH)]
    value = node.meta["val"]
    if isinstance(value, Tensor):
        return [*source[:-1], axis(value.shape[-1], FEATURE)]
    first = [*source[:-1], axis(value[0].shape[-1], FEATURE)]
    states = [[*(axis(size) for size in one.shape[:-2]), batch, axis(one.shape[-1], FEATURE)] for one in value[1:]]
    return [first, *states]


@on("lstm", "gru", "rnn_tanh", "rnn_relu")
def recurrence(node: Node, look: Lookup) -> Axes:
    """Axes of ``recurrent``, where the sequences are not packed."""
    given = bind(node)
    if "batch_first" not in given:  # packed sequences: time and batch in one axis
        return unknown(node)
    return recurrent(look(given["input"]), node, batch_first=given["batch_first"], step=False)


@on("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def recurrent_cell(node: Node, look: Lookup) -> Axes:
    """Axes of one step."""
    return recurrent(look(bind(node)["input"]), node, batch_first=False, step=True)
