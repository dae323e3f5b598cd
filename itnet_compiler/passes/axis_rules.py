"""How each operator carries axis roles: one function per kind of operator, found by operator name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.fx import Node

from .axis_algebra import Axis, AxisRole, axis, broadcast, resized, same_size
from .contraction import contraction
from .match import bind
from .operators import (
    CUMULATIVE,
    NORMALISATIONS,
    POINTWISE,
    REDUCTIONS,
    SOFTMAXES,
    operator_name,
)

__all__ = [
    "RULES",
    "Axes",
    "Lookup",
    "conv_like",
    "dims_of",
    "on",
    "recurrent",
    "resize",
    "scaled_attention",
    "unknown",
]

BATCH, POSITION, FEATURE, UNKNOWN = AxisRole.BATCH, AxisRole.POSITION, AxisRole.FEATURE, AxisRole.UNKNOWN

# Axes of a tensor, or a list of them for a node with several results.
Axes = list[Any]


class Lookup(Protocol):
    """What a rule sees of the analysis."""

    def __call__(self, value: object) -> list[Axis]:
        """Axes of an argument; none for what is no tensor."""

    def results(self, node: Node) -> list[list[Axis]]:
        """Axes of every result of a node with several."""

    def is_weight(self, node: Node) -> bool:
        """Whether a value depends on no model input."""


AxisRule = Callable[[Node, Lookup], Axes]

RULES: dict[str, AxisRule] = {}


def on(*names: str) -> Callable[[AxisRule], AxisRule]:
    """Declare the rule of some operators."""

    def register(function: AxisRule) -> AxisRule:
        for name in names:
            RULES[name] = function
        return function

    return register


def shape(node: Node) -> list[Any]:
    return list(node.meta["val"].shape)


def unknown(node: Node) -> Axes:
    """Axes of a result about which nothing is known."""
    value = node.meta.get("val")
    if isinstance(value, Tensor):
        return [axis(size) for size in value.shape]
    if isinstance(value, (tuple, list)):
        return [[axis(size) for size in item.shape] if isinstance(item, Tensor) else [] for item in value]
    return []


def input_convention(axes: Sequence[Axis]) -> None:
    """Model inputs fed to a layer over their last axis: [B, D] is (batch, feature), [B, L, D] has positions between."""
    lead = axes[:-1]
    if not lead or len(lead) > 2 or not all(_is_input(one) for one in lead):
        return
    for one, role in zip(lead, (BATCH, POSITION), strict=False):
        one.settle(role)


def _is_input(one: Axis) -> bool:
    return all(factor.variable.root().from_input and factor.variable.role is UNKNOWN for factor in one.factors)


def _dim(value: int, rank: int) -> int:
    return value + rank if value < 0 else value


def dims_of(value: Any, rank: int) -> list[int]:
    if value is None or value == []:
        return list(range(rank))
    return [_dim(one, rank) for one in (value if isinstance(value, (list, tuple)) else [value])]


def source_of(node: Node) -> Any:
    """The first tensor argument."""
    return next(iter(bind(node).values()), None)


# ── Elementwise ──────────────────────────────────────────────────────────────────────────────────────────────────────


@on(*POINTWISE, "broadcast_tensors")
def pointwise(node: Node, look: Lookup) -> Axes:
    value = node.meta["val"]
    operands = [look(source) for source in node.all_input_nodes]
    if isinstance(value, Tensor):
        return broadcast(operands, list(value.shape))
    return [broadcast(operands, list(item.shape)) for item in value]


@on("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like")
def like(node: Node, look: Lookup) -> Axes:
    return look(source_of(node))


@on(*SOFTMAXES, *CUMULATIVE, "roll", "flip", "fliplr", "flipud", "sort", "argsort", "topk", "msort", "diff", "renorm")
@on(
    "slice",
    "narrow",
    "constant_pad_nd",
    "pad",
    "repeat_interleave",
    "slice_scatter",
    "select_scatter",
    "tile",
    "repeat",
)
@on("scatter", "scatter_add", "scatter_reduce", "index_add", "index_copy", "index_fill", "index_put", "masked_scatter")
@on("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d")
@on("replication_pad3d", "index_select", "channel_shuffle", "native_channel_shuffle", "gather", "take_along_dim")
def same_axes(node: Node, look: Lookup) -> Axes:
    """The source's axes, each perhaps with another extent."""
    source, value = look(source_of(node)), node.meta["val"]
    if not isinstance(value, Tensor):
        return [resize_all(source, list(item.shape)) for item in value]
    return resize_all(source, list(value.shape))


def resize_all(source: Sequence[Axis], sizes: Sequence[Any]) -> list[Axis]:
    lead = [axis(size) for size in sizes[: len(sizes) - len(source)]]
    if len(source) > len(sizes):
        return [axis(size) for size in sizes]
    return lead + [resize(one, size) for one, size in zip(source, sizes[len(lead) :], strict=True)]


def resize(one: Axis, size: Any) -> Axis:
    """The axis itself where it has that extent already, with its factors."""
    if len(one.factors) == 1 and same_size(one.factors[0].size, size):
        return one
    product = 1
    for factor in one.factors:
        product = product * factor.size
    return one if same_size(product, size) else resized(one, size)


# ── Layers that fix roles ────────────────────────────────────────────────────────────────────────────────────────────


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
    source, sizes = look(source_of(node)), shape(node)
    conv_like(source, shape(source_of(node)), len(sizes) - 2, new_features=False)
    return [*source[:2], *(axis(size, POSITION) for size in sizes[2:])]


@on("pixel_shuffle", "pixel_unshuffle")
def pixel_shuffle(node: Node, look: Lookup) -> Axes:
    source, sizes = look(source_of(node)), shape(node)
    for one, role in zip(source[-3:], (FEATURE, POSITION, POSITION), strict=True):
        one.settle(role)
    roles = (FEATURE, POSITION, POSITION)
    return [*source[:-3], *(axis(size, role) for size, role in zip(sizes[-3:], roles, strict=True))]


@on("im2col", "col2im")
def windows(node: Node, look: Lookup) -> Axes:
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
    if len(index) == 2 and all(_is_input(one) for one in index):
        index[0].settle(BATCH)
        index[1].settle(POSITION)
    return [*index, axis(shape(node)[-1], FEATURE)]


@on("one_hot")
def one_hot(node: Node, look: Lookup) -> Axes:
    return [*look(source_of(node)), axis(shape(node)[-1], FEATURE)]


def scaled_attention(query: list[Axis], key: list[Axis], value: list[Axis], size: Any) -> list[Axis]:
    """Queries' axes with the values' features; [..., L, D] is (..., position, feature)."""
    for operand in (query, key, value):
        operand[-1].settle(FEATURE)
        if len(operand) > 1:
            operand[-2].settle(POSITION)
        if len(operand) > 2 and _is_input(operand[0]):
            operand[0].settle(BATCH)
    last = value[-1] if value[-1].role is FEATURE else axis(size, FEATURE)
    return [*query[:-1], last]


@on("scaled_dot_product_attention")
def attention(node: Node, look: Lookup) -> Axes:
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
    given = bind(node)
    if "batch_first" not in given:  # packed sequences: time and batch in one axis
        return unknown(node)
    return recurrent(look(given["input"]), node, batch_first=given["batch_first"], step=False)


@on("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def recurrent_cell(node: Node, look: Lookup) -> Axes:
    return recurrent(look(bind(node)["input"]), node, batch_first=False, step=True)


# ── Sums ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


@on(*REDUCTIONS, "argmax", "argmin", "median", "mode", "kthvalue")
def reduction(node: Node, look: Lookup) -> Axes:
    """Axes in ``dim`` go, or with ``keepdim`` stay with extent 1."""
    given, value = bind(node), node.meta["val"]
    source = look(source_of(node))
    if isinstance(value, Tensor) and ("other" in given or "x2" in given):  # max.other, cosine_similarity
        operands = [look(one) for one in node.all_input_nodes]
        return broadcast(operands, list(value.shape)) if "other" in given else unknown(node)
    dims = dims_of(given.get("dim"), len(source))
    if given.get("keepdim"):
        kept = [resized(one, 1) if place in dims else one for place, one in enumerate(source)]
    else:
        kept = [one for place, one in enumerate(source) if place not in dims]
    return kept if isinstance(value, Tensor) else [kept for _ in value]


@on("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "mv", "addmv", "dot", "vdot", "outer", "ger", "inner")
@on("einsum", "tensordot", "linalg_matmul", "__matmul__")
def product(node: Node, look: Lookup) -> Axes:
    """A label that only weights have gives features, or positions where the sum runs over positions."""
    read = contraction(node)
    if read is None:
        return unknown(node)
    axes = [look(operand) for operand in read.operands]
    for operand, labels, partner in zip(axes, read.labels, reversed(read.operands), strict=False):
        if len(axes) == 2 and look.is_weight(partner):
            _settle_features(operand, labels, read.summed)
    met: dict[str, list[Axis]] = {}
    for labels, operand in zip(read.labels, axes, strict=True):
        for label, one in zip(labels, operand, strict=True):
            met.setdefault(label, []).append(one)
    summed = [one for label in read.summed for one in met[label]]
    roles = {one.role for one in summed} - {UNKNOWN}
    weights = [look.is_weight(operand) for operand in read.operands]
    result = []
    for label, size in zip(read.output, shape(node), strict=True):
        found = broadcast([[one] for one in met[label]], [size])[0]
        holders = [index for index, labels in enumerate(read.labels) if label in labels]
        if found.role is UNKNOWN and summed and all(weights[index] for index in holders):
            found = axis(size, POSITION if roles == {POSITION} else FEATURE)
        result.append(found)
    return result


def _settle_features(source: list[Axis], labels: Sequence[str], summed: Sequence[str]) -> None:
    """Weights are applied to features, where nothing else is known of the axis."""
    for one, label in zip(source, labels, strict=True):
        if label in summed:
            one.settle(FEATURE)
    if labels[-1] in summed:
        input_convention(source)
