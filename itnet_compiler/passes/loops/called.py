"""Recurrences that are one call already: what the rewrites of ``scan`` and ``associative_scan`` have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch.fx import Graph, Node

from ...ir.body import Body, Ref
from .core import Core
from .emitter import Emitter
from .equivalence import Replacement
from .unrolled import NotALoop, key_of
from .uses import pieces_of

__all__ = ["Called"]


@dataclass
class Called(ABC):
    """One call of an operator that runs a recurrence.

    Attributes:
        node: The call.
        emit: Makes the nodes that take its place.
        pieces: Its results that are used, by number.
    """

    node: Node
    emit: Emitter
    pieces: dict[int, Node]

    @classmethod
    def read(cls, graph: Graph, node: Node) -> Self:
        """The call at ``node``. Raises ``NotALoop`` where its results are used otherwise than one by one."""
        return cls(node, Emitter(graph, node, node), pieces_of(graph, node))

    @abstractmethod
    def build(self, realise: Callable[[Core, Emitter], list[Node] | None]) -> Replacement | None:
        """Make its nodes; None, with nothing made, where ``realise`` does not know the core."""

    def commit(self, replacement: Replacement) -> None:
        """Let everything use the new nodes."""
        for old, new in replacement.results:
            old.replace_all_uses_with(new)
            old.graph.erase_node(old)
        self.node.graph.erase_node(self.node)

    def _types(
        self, body: Body, carries: Sequence[Any], steps: Sequence[Any], shared: Sequence[Any] = ()
    ) -> dict[Ref, Any]:
        """The value of each reference in one step. Raises ``NotALoop`` where a carried value changes its type."""
        given = {"carry": tuple(carries), "step": tuple(steps), "shared": tuple(shared)}
        given["local"] = tuple(self.emit.run(lambda: body.run(0, given["carry"], given["step"], given["shared"])))
        found = {Ref(kind, index): value for kind, values in given.items() for index, value in enumerate(values)}
        for index, ref in enumerate(body.carried):
            if key_of(found[ref]) != key_of(found[Ref("carry", index)]):
                raise NotALoop("a carried value begins with another size or type than it has later", self.node)
        return found
