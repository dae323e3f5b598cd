"""A sink that scales the result: y·σ(log Σ_j exp(s) − sink), which is what a further score in the softmax would do.

Σ_j exp(s)·v / Σ_j exp(s) · Σ_j exp(s) / (Σ_j exp(s) + exp(sink)) = Σ_j exp(s)·v / (Σ_j exp(s) + exp(sink))
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from ..match import bind
from ..operators import operator_name
from .attention_joins import Joins
from .labels import Axes
from .products import is_tensor

__all__ = ["Sinks", "is_scaled_by_a_sink"]

_VIEWS = frozenset(
    "unsqueeze squeeze view reshape expand to _to_copy type_as float transpose permute contiguous".split()
)


def _behind_views(node: object) -> Node | None:
    for _ in range(8):
        if not isinstance(node, Node) or node.op != "call_function":
            return None
        if operator_name(node) not in _VIEWS:
            return node
        node = node.args[0]
    return None


def _is_gate(node: object) -> bool:
    gate = _behind_views(node)
    if gate is None or operator_name(gate) != "sigmoid":
        return False
    difference = _behind_views(gate.args[0])
    if difference is None or operator_name(difference) != "sub":
        return False
    total = _behind_views(difference.args[0])
    return total is not None and operator_name(total) == "logsumexp"


def is_scaled_by_a_sink(node: Node) -> bool:
    """Whether one factor of a product is the sigmoid of a ``logsumexp`` and something that is subtracted from it."""
    return any(_is_gate(side) for side in node.args[:2])


@dataclass(frozen=True)
class _Gate:
    """The factor σ(total − sink) in labels."""

    total: Node
    total_axes: Axes
    sink: Node
    sink_axes: Axes


class Sinks(Joins):
    """Reads the factor, and proves that it is that of the very scores of the softmax.

    Attributes:
        scored: The scores where the softmax is taken, with their axes.
    """

    scored: tuple[Node, Axes] | None = None

    def _scaled(self, node: Node, axes: Axes) -> tuple[Node, Axes, _Gate]:
        """y·σ(total − sink): y, its axes and the factor."""
        first, second = bind(node)["self"], bind(node)["other"]
        source, gate = (first, second) if _is_gate(second) else (second, first)
        self.match.require(is_tensor(source), "a sink scales a number", node)
        self._take(node)
        source_axes, gate_axes = self.tracer.aligned(source, axes), self.tracer.aligned(gate, axes)
        fits = source_axes == self.tracer.resolve(axes) and gate_axes is not None
        self.match.require(fits, "what a sink scales is broadcast", node)
        assert source_axes is not None
        assert gate_axes is not None
        sigmoid, gate_axes = self._through_views(gate, gate_axes)
        self._take(sigmoid)
        difference, gate_axes = self._through_views(bind(sigmoid)["self"], gate_axes)
        self._take(difference)
        given = bind(difference)
        self.match.require(is_tensor(given["other"]) and given["alpha"] == 1, "the sink is no tensor", difference)
        total_axes = self.tracer.aligned(given["self"], gate_axes)
        sink_axes = self.tracer.aligned(given["other"], gate_axes)
        self.match.require(total_axes is not None and sink_axes is not None, "a sink of another shape", difference)
        assert total_axes is not None
        assert sink_axes is not None
        total, total_axes = self._through_views(given["self"], total_axes)
        self._take(total)
        source, source_axes = self._through_views(source, source_axes)
        return source, source_axes, _Gate(total, total_axes, given["other"], sink_axes)

    def _take_sink(self, gate: _Gate) -> None:
        """Make the factor a sink of the attention that was found."""
        found, total = self.found, gate.total
        assert self.scored is not None
        scores, axes = self.scored[0], self.tracer.resolve(self.scored[1])
        given = bind(total)
        self.match.require(given["self"] is scores, "a sink scales by the sum of other scores", total)
        self.match.require(found.sink is None, "a second sink", total)
        dims = given["dim"] if isinstance(given["dim"], (list, tuple)) else [given["dim"]]
        places = {place % len(axes) for place in dims}
        over = {label for place in places for label in axes[place]}
        self.match.require(over == set(self.tracer.flat([found.keys])), "a sink scales by another sum", total)
        kept = tuple(() if place in places else axis for place, axis in enumerate(axes))
        kept = kept if given["keepdim"] else tuple(axis for place, axis in enumerate(axes) if place not in places)
        self.match.require(self.tracer.resolve(gate.total_axes) == kept, "a sink scales other queries", total)
        changed = [step for step, _ in found.after if step.kind != "dropout"]
        self.match.require(not changed, "a sink scales weights that are changed", total)
        found.sink = self._operand(gate.sink, gate.sink_axes)
        found.scaled = True
