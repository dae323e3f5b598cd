"""Axis roles: which axes of every tensor in a graph count samples, positions or features.

    roles_of(node)        # (batch, feature, position, position) behind a conv2d

The analysis runs forward over the graph once. Layers that fix the meaning of their axes (convolution, embedding,
normalisation, attention, recurrence) are the source of truth; everything else carries roles along. What a model input
means is taken from its first such consumer. Nothing is concluded from equal sizes, so an axis may stay ``unknown``.

Results are kept per graph and looked up by node. Rewrites elsewhere in a graph do not change the role of a node that
stays, and a node that is new makes the analysis run again; call ``invalidate`` after changing a node in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor
from torch.fx import Graph, Node

from ...ir.attention import Attention
from ...ir.cumulative import Cumulative
from ...ir.fold import Fold
from ...ir.fourier import Fourier
from ...ir.gated import Gated
from ...ir.joined_attention import JoinedAttention
from ...ir.layout import parse
from ...ir.long_convolution import LongConvolution
from ...ir.mixing import Mixing
from ...ir.separable import Separable
from ...ir.stencil import Stencil
from ...ir.window_sum import WindowSum
from ..dependence import Dependence, dependences, is_parameter
from ..operators import operator_name
from . import views  # noqa: F401 - registers its rules
from .algebra import Axis, AxisRole, axis
from .layers import conv_like, recurrent, scaled_attention
from .rules import RULES, Axes, resize_all, unknown

__all__ = ["Analysis", "AxisRole", "analyse", "invalidate", "is_weight", "roles_of"]

Roles = tuple[AxisRole, ...]


class Analysis:
    """Axes of every node of one graph; the ``Lookup`` that rules are given.

    Args:
        graph: Flat ATen graph with fake values; integrals may have taken the place of some nodes.
    """

    def __init__(self, graph: Graph) -> None:
        self.dependences = dependences(graph)
        self._axes: dict[Node, Axes] = {}
        for node in graph.nodes:
            self._axes[node] = self._of(node)

    def __call__(self, value: object) -> list[Axis]:
        if not isinstance(value, Node) or not isinstance(value.meta.get("val"), Tensor):
            return []
        return self._axes[value]

    def results(self, node: Node) -> list[list[Axis]]:
        """Axes of every result of a node with several."""
        return self._axes[node] if isinstance(node.meta.get("val"), (tuple, list)) else []

    def is_weight(self, node: Node) -> bool:
        """Whether a value depends on no model input."""
        return self.dependences[node] is Dependence.CONSTANT

    def roles(self, node: Node) -> Roles:
        """Roles of a tensor node's axes; empty for nodes that hold no single tensor."""
        return tuple(one.role for one in self(node))

    def _of(self, node: Node) -> Axes:
        if node.op == "placeholder":
            own = not is_parameter(node)
            return [axis(size, from_input=own) for size in self._sizes(node)]
        if node.op == "get_attr":
            return [axis(size) for size in self._sizes(node)]
        if node.op == "output" or not isinstance(node.meta.get("val"), (Tensor, tuple, list)):
            return []
        if "integral" in node.meta:
            found = self._of_integral(node)
        elif node.op == "call_function":
            rule = RULES.get(operator_name(node))
            found = rule(node, self) if rule else unknown(node)
        else:
            found = unknown(node)
        return found if _fits(found, node.meta["val"]) else unknown(node)

    @staticmethod
    def _sizes(node: Node) -> list[Any]:
        value = node.meta.get("val")
        return list(value.shape) if isinstance(value, Tensor) else []

    def _of_attention(
        self, kernel: Attention | JoinedAttention | Separable, operands: dict[str, Any], shape: Sequence[Any]
    ) -> list[Axis]:
        """Axes of the result by label: as the queries have them, else keys, values or a mask."""
        labels = kernel.labels
        known: dict[tuple[str, ...], Axis] = {}
        roles = dict.fromkeys((*labels.queries, *labels.keys), AxisRole.POSITION)
        roles |= dict.fromkeys((*labels.channels, *labels.features), AxisRole.FEATURE)
        for role, layout in kernel.layouts.items():
            for group, one in zip(layout, self(operands[role]), strict=False):
                kinds = {roles[label] for label in group if label in roles}
                if len(kinds) == 1 and len(group) == 1:
                    one.settle(kinds.pop())
                known.setdefault(group, one)
                if len(group) > 1 and one.role is AxisRole.FEATURE:
                    for label in group:  # heads that are a factor of the features
                        roles.setdefault(label, AxisRole.FEATURE)
                if len(group) > 1 and len(one.factors) == len(group):
                    for label, factor in zip(group, one.factors, strict=True):
                        known.setdefault((label,), Axis((factor,)))
        groups = zip(parse(kernel.output), shape, strict=True)
        return [self._joined(group, size, known, roles) for group, size in groups]

    @staticmethod
    def _joined(group: tuple[str, ...], size: Any, known: dict[Any, Axis], roles: dict[str, AxisRole]) -> Axis:
        if not group:
            return axis(size)
        if group in known:
            return known[group]
        parts = [known[(label,)] for label in group if (label,) in known]
        if len(parts) == len(group):
            return Axis(tuple(factor for part in parts for factor in part.factors))
        kinds = {roles.get(label, AxisRole.BATCH) for label in group}
        return axis(size, kinds.pop() if len(kinds) == 1 else AxisRole.UNKNOWN)

    @staticmethod
    def _of_windows(kernel: WindowSum, source: list[Axis], shape: list[Any]) -> Axes:
        """Places are positions, what the input has is as it was, all else is features."""
        known = dict(zip(kernel.layouts["input"], source, strict=True))
        places = {axis.place for axis in kernel.axes}
        for group, one in known.items():
            if set(group) & {axis.source for axis in kernel.axes}:
                one.settle(AxisRole.POSITION)
        result = []
        for group, size in zip(parse(kernel.output), shape, strict=True):
            role = AxisRole.POSITION if group and set(group) <= places else AxisRole.FEATURE
            result.append(resize_all([known[group]], [size])[0] if group in known else axis(size, role))
        return result

    def _of_integral(self, node: Node) -> Axes:
        """By family; a family not named here leaves its axes unknown."""
        spec, operands, value = node.meta["integral"].spec, node.kwargs, node.meta["val"]
        source = self(operands.get("input"))
        kernel, family = spec.kernel, spec.kernel.family
        first = value if isinstance(value, Tensor) else value[0]
        if isinstance(kernel, Mixing):
            place = len(source) - (2 if kernel.left else 1)
            found = [*source[:place], axis(first.shape[place], AxisRole.POSITION), *source[place + 1 :]]
        elif isinstance(kernel, (Cumulative, Fourier, LongConvolution, Stencil)):
            found = resize_all(source, list(first.shape))
        elif isinstance(kernel, WindowSum):
            return self._of_windows(kernel, source, list(first.shape))
        elif isinstance(kernel, Fold):
            return (
                unknown(node)
                if len(source) != 3
                else [
                    source[0],
                    axis(first.shape[1], AxisRole.FEATURE),
                    *(axis(size, AxisRole.POSITION) for size in first.shape[2:]),
                ]
            )
        elif family == "stationary" or (family == "dense" and kernel.weights != "uniform"):
            found = conv_like(source, list(first.shape), spec.domain.rank, new_features="weight" in operands)
        elif family == "dense":
            axes = {place % len(source) for place in kernel.axes}
            found = [
                axis(1, one.role) if place in axes else one
                for place, one in enumerate(source)
                if kernel.keepdim or place not in axes
            ]
        elif isinstance(kernel, (Attention, JoinedAttention, Separable)):
            found = self._of_attention(kernel, operands, first.shape)
        elif family == "softmax" and "input" in operands:
            found = scaled_attention(source, source, source, first.shape[-1])
        elif family == "softmax":
            query, key, value_axes = (self(operands[role]) for role in ("query", "key", "value"))
            found = scaled_attention(query, key, value_axes, first.shape[-1])
        elif isinstance(kernel, Gated):
            step = spec.domain.single_step
            return recurrent(source, node, batch_first=kernel.batch_first, step=step)
        else:
            return unknown(node)
        return found if isinstance(value, Tensor) else [found, *unknown(node)[1:]]


def _fits(axes: Axes, value: Any) -> bool:
    if isinstance(value, Tensor):
        return len(axes) == value.dim()
    return len(axes) == len(value) and all(
        len(one) == item.dim() for one, item in zip(axes, value, strict=True) if isinstance(item, Tensor)
    )


# Roles of a node's axes, and whether its value depends on no model input.
_kept: WeakKeyDictionary[Graph, WeakKeyDictionary[Node, tuple[Roles, bool]]] = WeakKeyDictionary()


def analyse(graph: Graph) -> Analysis:
    """A fresh analysis of ``graph``, whose results ``roles_of`` will give from now on."""
    found = Analysis(graph)
    _kept[graph] = WeakKeyDictionary({node: (found.roles(node), found.is_weight(node)) for node in graph.nodes})
    return found


def roles_of(node: Node) -> Roles:
    """Roles of a tensor node's axes, from the analysis of its graph; empty where the node is no single tensor."""
    return _known(node)[0]


def is_weight(node: Node) -> bool:
    """Whether a value depends on no model input."""
    return _known(node)[1]


def _known(node: Node) -> tuple[Roles, bool]:
    kept = _kept.get(node.graph)
    if kept is None or node not in kept:
        analyse(node.graph)
        kept = _kept[node.graph]
    return kept[node]


def invalidate(graph: Graph) -> None:
    """Forget what is known of ``graph``."""
    _kept.pop(graph, None)
