"""How each operator carries axis roles: one function per kind of operator, found by operator name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor
from torch.fx import Node

from ..forms.contraction import contraction
from ..match import bind
from ..operators import (
    CUMULATIVE,
    FOURIER,
    POINTWISE,
    REDUCTIONS,
    SOFTMAXES,
)
from .algebra import Axis, AxisRole, axis, broadcast, has_extent, resized

__all__ = [
    "RULES",
    "Axes",
    "Lookup",
    "dims_of",
    "input_convention",
    "is_model_input",
    "on",
    "resize",
    "resize_all",
    "shape",
    "source_of",
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
    """Extents of a tensor node."""
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
    if not lead or len(lead) > 2 or not all(is_model_input(one) for one in lead):
        return
    for one, role in zip(lead, (BATCH, POSITION), strict=False):
        one.settle(role)


def is_model_input(one: Axis) -> bool:
    """Whether an axis is one of a model input, of which nothing is known yet."""
    return all(factor.variable.root().from_input and factor.variable.role is UNKNOWN for factor in one.factors)


def _dim(value: int, rank: int) -> int:
    return value + rank if value < 0 else value


def dims_of(value: Any, rank: int) -> list[int]:
    """Axes as places from the left; all of them where none is given."""
    if value is None or value == []:
        return list(range(rank))
    return [_dim(one, rank) for one in (value if isinstance(value, (list, tuple)) else [value])]


def source_of(node: Node) -> Any:
    """The first tensor argument."""
    return next(iter(bind(node).values()), None)


# ── Elementwise ──────────────────────────────────────────────────────────────────────────────────────────────────────


@on(*POINTWISE, "broadcast_tensors")
def pointwise(node: Node, look: Lookup) -> Axes:
    """Broadcast axes of all operands; where weights contradict the data, the data are right."""
    value = node.meta["val"]
    data = [look(source) for source in node.all_input_nodes if not look.is_weight(source)]
    weights = [look(source) for source in node.all_input_nodes if look.is_weight(source)]

    def combined(sizes: list[Any]) -> list[Axis]:
        found = broadcast(data, sizes)
        both = broadcast([found, *weights], sizes)
        pairs = zip(found, both, strict=True)
        return [one if one.role is not UNKNOWN and one.is_one is other.is_one else other for one, other in pairs]

    if isinstance(value, Tensor):
        return combined(list(value.shape))
    return [combined(list(item.shape)) for item in value]


@on("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like")
def like(node: Node, look: Lookup) -> Axes:
    """Axes of the tensor imitated."""
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
@on(*FOURIER)
@on("replication_pad3d", "index_select", "channel_shuffle", "native_channel_shuffle", "gather", "take_along_dim")
def same_axes(node: Node, look: Lookup) -> Axes:
    """The source's axes, each perhaps with another extent."""
    source, value = look(source_of(node)), node.meta["val"]
    if not isinstance(value, Tensor):
        return [resize_all(source, list(item.shape)) for item in value]
    return resize_all(source, list(value.shape))


def resize_all(source: Sequence[Axis], sizes: Sequence[Any]) -> list[Axis]:
    """Every axis with its new extent; axes added in front are unknown."""
    lead = [axis(size) for size in sizes[: len(sizes) - len(source)]]
    if len(source) > len(sizes):
        return [axis(size) for size in sizes]
    return lead + [resize(one, size) for one, size in zip(source, sizes[len(lead) :], strict=True)]


def resize(one: Axis, size: Any) -> Axis:
    """The axis itself where it has that extent already, with its factors."""
    return one if has_extent(one, size) else resized(one, size)


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
        ours = holders == [1] if all(weights) else all(weights[index] for index in holders)
        if found.role is UNKNOWN and summed and ours:
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
