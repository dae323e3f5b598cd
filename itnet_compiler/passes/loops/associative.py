"""Associative scans whose combination is affine in the left element: linear scans, one after the other.

What is combined from left to right is a loop: ``h ← combine(h, x)``. That it is the tree of combinations which the
source computes holds where the combination is associative, and is found out by comparing the two.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.fx import Graph, Node

from ...ir.mode import mode_of
from ..associative import AssociativeScan
from .called import Called
from .core import Core
from .emitter import Emitter
from .equivalence import Replacement
from .unrolled import NotALoop

__all__ = ["Associative", "associative_scans"]

_END = torch.iinfo(torch.int64).max


def associative_scans(graph: Graph) -> list[Node]:
    """The calls of ``associative_scan`` in a graph."""
    return [node for node in graph.nodes if isinstance(node.target, AssociativeScan)]


class Associative(Called):
    """One call, over axis 0 of its leaves."""

    def build(self, realise: Callable[[Core, Emitter], list[Node] | None]) -> Replacement | None:
        scan, leaves = self.node.target, self.node.args[0]
        assert isinstance(scan, AssociativeScan)
        assert isinstance(leaves, (list, tuple))
        body, carried, given = scan.of(set(self.pieces))
        firsts = [self.emit("aten.select.int", leaves[index], 0, 0) for index in carried]
        rests = [self.emit("aten.slice.Tensor", leaves[index], 0, 1, _END) for index in given]
        if not rests:
            raise NotALoop("a combination that does not look at the right element", self.node)
        left = [first.meta["val"] for first in firsts]
        right = [self.emit.run(lambda value: value.new_empty(value.shape[1:]), rest) for rest in rests]
        core = Core(
            body,
            rests[0].meta["val"].shape[0],
            firsts,
            [(rest, 0) for rest in rests],
            [],
            [0] * len(carried),
            self._types(body, left, right),
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
