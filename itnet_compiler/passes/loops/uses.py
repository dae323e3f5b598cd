"""What the rest of a graph takes of an unrolled loop: values of every step that are collected, and single ones."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph, Node

from ..match import op_name
from .unrolled import NotALoop, Unrolled

__all__ = ["Collector", "Piece", "Uses", "find_uses", "pieces_of"]


@dataclass(frozen=True)
class Piece:
    """A run of the items of a list: one place of the steps ``first``, ``first + by``, … ``count`` of them."""

    place: int
    first: int
    by: int
    count: int


@dataclass(frozen=True)
class Collector:
    """A ``stack`` or ``cat`` of values of the loop.

    Attributes:
        node: The call.
        parts: Runs of values of the loop, and other nodes between them.
        axis: Along which it joins; not negative.
    """

    node: Node
    parts: tuple[Piece | Node, ...]
    axis: int

    @property
    def stacks(self) -> bool:
        """Whether the axis is new."""
        return op_name(self.node).startswith("aten.stack")


@dataclass
class Uses:
    """What is needed of a loop.

    Attributes:
        collectors: Where values of many steps go.
        single: Values of one step that are used elsewhere: node → (step, place).
    """

    collectors: list[Collector] = field(default_factory=list)
    single: dict[Node, tuple[int, int]] = field(default_factory=dict)

    def places(self) -> set[int]:
        """Places of which every step is needed."""
        pieces = {part.place for one in self.collectors for part in one.parts if isinstance(part, Piece)}
        return pieces | {place for step, place in self.single.values() if step >= 0}

    def last(self) -> set[int]:
        """Places of which the last step is needed by itself, and no other one is."""
        others = {place for step, place in self.single.values() if step >= 0}
        return {place for step, place in self.single.values() if step < 0} - others


_COLLECTORS = ("aten.stack.default", "aten.cat.default", "aten.concat.default")


def find_uses(loop: Unrolled) -> Uses:
    """Every use of a value of the loop outside of it. A single use of the last step is given as step −1."""
    spots = {node: (t, p) for t, row in enumerate(loop.rows) for p, node in enumerate(row) if node is not None}
    found = Uses()
    seen: dict[Node, Collector | None] = {}
    for node, (step, place) in spots.items():
        for user in node.users:
            if user in spots:
                continue
            if user not in seen:
                seen[user] = _collector(user, spots)
                if (one := seen[user]) is not None:
                    found.collectors.append(one)
            one = seen[user]
            if one is None or node in one.parts:
                found.single[node] = (-1 if step == loop.steps - 1 else step, place)
    return found


def _collector(node: Node, spots: dict[Node, tuple[int, int]]) -> Collector | None:
    if node.op != "call_function" or op_name(node) not in _COLLECTORS or node.kwargs:
        return None
    items, axis = node.args[0], node.args[1] if len(node.args) > 1 else 0
    assert isinstance(items, (list, tuple))
    assert isinstance(axis, int)
    parts: list[Any] = []
    index = 0
    while index < len(items):
        piece = _piece(items, index, spots)
        parts.append(piece if piece is not None else items[index])
        index += piece.count if piece is not None else 1
    if not any(isinstance(part, Piece) for part in parts):
        return None
    return Collector(node, tuple(parts), axis % node.meta["val"].dim())


def _piece(items: Any, start: int, spots: dict[Node, tuple[int, int]]) -> Piece | None:
    """The longest run of one place from ``start`` on."""
    if start + 1 >= len(items) or items[start] not in spots or items[start + 1] not in spots:
        return None
    (first, place), (second, other) = spots[items[start]], spots[items[start + 1]]
    by = second - first
    if place != other or abs(by) != 1:
        return None
    count = 2
    while start + count < len(items) and spots.get(items[start + count]) == (first + count * by, place):
        count += 1
    return Piece(place, first, by, count)


def pieces_of(graph: Graph, scan: Node) -> dict[int, Node]:
    """The results of a call of ``scan`` that are used, by number, each taken by one node from now on.

    Raises ``NotALoop`` where they are used otherwise than one by one.
    """
    if any(user.target is not operator.getitem for user in scan.users):
        raise NotALoop("the results of a scan are used as a whole", scan)
    pieces: dict[int, Node] = {}
    for user in list(scan.users):
        first = pieces.setdefault(user.args[1], user)  # type: ignore[arg-type]
        if first is not user:
            user.replace_all_uses_with(first)
            graph.erase_node(user)
    return pieces
