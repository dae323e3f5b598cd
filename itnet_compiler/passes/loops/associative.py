"""Associative scans whose combination is affine in the left element: linear scans, one after the other.

What is combined from left to right is a loop: ``h ← combine(h, x)``. That it is the tree of combinations which the
source computes holds where the combination is associative, and is found out by comparing the two.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from ...ir.body import Body, Ref
from ...ir.mode import mode_of
from ..associative import AssociativeScan
from .core import Core
from .emitter import Emitter
from .equivalence import Replacement
from .unrolled import NotALoop, key_of
from .uses import pieces_of

__all__ = ["Associative", "associative_scans"]

_END = torch.iinfo(torch.int64).max


def associative_scans(graph: Graph) -> list[Node]:
    """The calls of ``associative_scan`` in a graph."""
    return [node for node in graph.nodes if isinstance(node.target, AssociativeScan)]


@dataclass
class Associative:
    """One call: over axis 0 of its leaves.

    Attributes:
        node: The call.
        emit: Makes the nodes that take its place.
        pieces: Its results that are used, by number.
    """

    node: Node
    emit: Emitter
    pieces: dict[int, Node]

    @classmethod
    def read(cls, graph: Graph, node: Node) -> Associative:
        """The call at ``node``. Raises ``NotALoop`` where its results are used otherwise than one by one."""
        return cls(node, Emitter(graph, node, node), pieces_of(graph, node))

    def build(self, realise: Callable[[Core, Emitter], list[Node] | None]) -> Replacement | None:
        """Make its nodes; None, with nothing made, where ``realise`` does not know the core."""
        scan, leaves = self.node.target, self.node.args[0]
        assert isinstance(scan, AssociativeScan)
        assert isinstance(leaves, (list, tuple))
        body, carried, given = scan.of(set(self.pieces))
        firsts = [self.emit("aten.select.int", leaves[index], 0, 0) for index in carried]
        rests = [self.emit("aten.slice.Tensor", leaves[index], 0, 1, _END) for index in given]
        if not rests:
            raise NotALoop("a combination that does not look at the right element", self.node)
        core = Core(
            body,
            rests[0].meta["val"].shape[0],
            firsts,
            [(rest, 0) for rest in rests],
            [],
            [0] * len(carried),
            self._types(body, firsts, rests),
            mode_of(self.node),
        )
        made = realise(core, self.emit)
        if made is None:
            self.emit.undo()
            return None
        results = []
        for index, first, node in zip(carried, firsts, made, strict=True):
            if index in self.pieces:
                row = self.emit("aten.unsqueeze.default", first, 0)
                results.append((self.pieces[index], self.emit("aten.cat.default", [row, node], 0)))
        return Replacement([self.node, *self.pieces.values()], self.emit.made, results)

    def commit(self, replacement: Replacement) -> None:
        """Let everything use the new nodes."""
        for old, new in replacement.results:
            old.replace_all_uses_with(new)
            old.graph.erase_node(old)
        self.node.graph.erase_node(self.node)

    def _types(self, body: Body, firsts: list[Node], rests: list[Node]) -> dict[Ref, Any]:
        left = tuple(first.meta["val"] for first in firsts)
        right = tuple(self.emit.run(lambda value: value.new_empty(value.shape[1:]), rest) for rest in rests)
        found = {Ref("carry", index): value for index, value in enumerate(left)}
        found |= {Ref("step", index): value for index, value in enumerate(right)}
        made = self.emit.run(lambda: body.run(0, left, right, ()))
        found |= {Ref("local", index): value for index, value in enumerate(made)}
        for index, ref in enumerate(body.carried):
            if key_of(found[ref]) != key_of(found[Ref("carry", index)]):
                raise NotALoop("a combination of two elements has another size or type than these", self.node)
        return found
