"""Calls of ``torch``'s ``associative_scan``, kept in the graph as one node each."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..ir.body import Body, Ref, map_refs, refs_of

__all__ = ["AssociativeScan"]


@dataclass(frozen=True)
class AssociativeScan:
    """What a graph node of the operator calls: the tree of combinations that ``torch`` runs, over axis 0.

    Attributes:
        combine: How two elements are combined: ``carry`` is the left one, ``step`` the right one, ``carried`` what
            becomes of them. It computes every position alone.
    """

    combine: Body

    def __post_init__(self) -> None:
        # What names of operators are made from.
        object.__setattr__(self, "__name__", "associative_scan")
        object.__setattr__(self, "__module__", "itnet_leaf")

    def __str__(self) -> str:
        return "torch.associative_scan"

    def __call__(self, leaves: list[Tensor]) -> list[Tensor]:
        tree = importlib.import_module("torch._higher_order_ops.associative_scan").generic_associative_scan
        found: list[Tensor] = tree(self._combined, list(leaves))
        return found

    def _combined(self, *pair: Any) -> list[Any]:
        count = len(pair) // 2
        left, right = pair[:count], pair[count:]
        values = {"carry": left, "step": right, "local": self.combine.run(0, left, right, ())}
        return [values[ref.kind][ref.index] for ref in self.combine.carried]

    def of(self, wanted: set[int]) -> tuple[Body, list[int], list[int]]:
        """The combination for these elements alone: with the elements carried, and those given, that they need."""
        carried, given, calls = set(wanted), set[int](), set[int]()
        waiting = [self.combine.carried[index] for index in wanted]
        while waiting:
            ref = waiting.pop()
            if ref.kind == "local" and ref.index not in calls:
                calls.add(ref.index)
                waiting += refs_of(self.combine.calls[ref.index])
            elif ref.kind == "step":
                given.add(ref.index)
            elif ref.kind == "carry" and ref.index not in carried:
                carried.add(ref.index)
                waiting.append(self.combine.carried[ref.index])
        kept = {"carry": sorted(carried), "step": sorted(given), "local": sorted(calls)}
        new = {
            Ref(kind, old): Ref(kind, place) for kind, old_ones in kept.items() for place, old in enumerate(old_ones)
        }
        after = tuple(new[self.combine.carried[index]] for index in kept["carry"])
        program = tuple(map_refs(self.combine.calls[index], new.__getitem__) for index in kept["local"])
        return Body(program, after, after), kept["carry"], kept["step"]
