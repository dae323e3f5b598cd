"""Alignment: two graphs of one module compared node by node, so that what changes with mode or dtype is known."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from ..ir.naming import operator_name
from ..passes.engine import integral_of

__all__ = ["Alignment", "Literal", "align"]


@dataclass(frozen=True)
class Literal:
    """An argument that two aligned nodes do not share.

    Attributes:
        node: Name of the node in the reference graph.
        argument: Name of the argument, or of the field of an integral's kernel.
        reference: Its value in the reference graph.
        value: Its value in the other one.
    """

    node: str
    argument: str
    reference: Any
    value: Any


@dataclass(frozen=True)
class Alignment:
    """How a graph relates to a reference.

    Attributes:
        literals: Where the graphs align: the arguments that differ, which are parameters of the common graph.
        obstacle: Where they do not: the first nodes that have no counterpart.
    """

    literals: tuple[Literal, ...] = ()
    obstacle: str = ""

    def describe(self, reference: str) -> str:
        """``as eval but for batch_norm.training × 53``, or why it is a graph of its own."""
        if self.obstacle:
            return f"not aligned with {reference}: {self.obstacle}"
        if not self.literals:
            return f"as {reference}"
        kinds = Counter(f"{literal.argument}" for literal in self.literals)
        return f"as {reference} but for " + ", ".join(
            f"{name} × {number}" if number > 1 else name for name, number in kinds.items()
        )


def align(reference: Graph, other: Graph) -> Alignment:
    """Pair the nodes of two graphs in order; operators and data flow must agree, literal arguments may differ."""
    twins: dict[Node, Node] = {}
    literals: list[Literal] = []
    mine, theirs = list(reference.nodes), list(other.nodes)
    for a, b in zip(mine, theirs, strict=False):
        problem = None if _same_operator(a, b) else f"{_name(b)} where that has {_name(a)}"
        if problem is None:
            found = _differences(a, b, twins)
            problem = found if isinstance(found, str) else None
            literals += found if not isinstance(found, str) else []
        if problem is not None:
            return Alignment(obstacle=f"{problem} ({a.name})")
        twins[b] = a
    if len(mine) != len(theirs):
        return Alignment(obstacle=f"it has {len(theirs)} nodes, not {len(mine)}")
    return Alignment(tuple(literals))


def _same_operator(a: Node, b: Node) -> bool:
    if a.op != b.op or a.meta.get("mode", ()) != b.meta.get("mode", ()):
        return False
    if integral_of(a) is not None and integral_of(b) is not None:
        return integral_of(a).family == integral_of(b).family  # type: ignore[union-attr]
    return a.target == b.target or a.op in ("placeholder", "output")


def _name(node: Node) -> str:
    return node.op if node.op in ("placeholder", "output", "get_attr") else operator_name(node)


def _differences(a: Node, b: Node, twins: dict[Node, Node]) -> list[Literal] | str:
    """Literals of ``b`` that are others in ``a``; text where operands come from elsewhere."""
    given, other = _arguments(a), _arguments(b)
    found: list[Literal] = []
    for name in (*given, *(name for name in other if name not in given)):
        first, second = given.get(name), other.get(name)
        if not _same_flow(first, second, twins):
            return f"operand {name} of {_name(b)} comes from elsewhere"
        if not _holds_node(first) and not _equal(first, second):
            found.append(Literal(a.name, f"{_name(a)}.{name}", first, second))
    return found


def _arguments(node: Node) -> dict[str, Any]:
    """Arguments by name, with defaults; for an integral also the fields of its kernel and domain."""
    integral = integral_of(node)
    if integral is not None:
        fields = {
            f"{part}.{entry.name}": getattr(value, entry.name)
            for part, value in (("kernel", integral.kernel), ("domain", integral.domain))
            for entry in dataclasses.fields(value)
        }
        return {**node.kwargs, **fields}
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {**{str(index): value for index, value in enumerate(node.args)}, **node.kwargs}
    named = {entry.name: entry.default_value for entry in schema.arguments}
    named |= dict(zip(named, node.args, strict=False))
    return named | dict(node.kwargs)


def _holds_node(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_node(part) for part in value)
    return isinstance(value, Node)


def _same_flow(first: Any, second: Any, twins: dict[Node, Node]) -> bool:
    if isinstance(first, Node) or isinstance(second, Node):
        return isinstance(second, Node) and twins.get(second) is first
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and _holds_node([first, second]):
        return len(first) == len(second) and all(
            _same_flow(a, b, twins) and (_holds_node(a) or _equal(a, b)) for a, b in zip(first, second, strict=True)
        )
    return True


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(_equal(a, b) for a, b in zip(first, second, strict=True))
    return type(first) is type(second) and bool(first == second)
