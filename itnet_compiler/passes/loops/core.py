"""What is left of a loop after fission, with the nodes it works on: what is recognised, or run step by step."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from ...ir.body import Body, Ref, map_refs, refs_of
from ...ir.loop import Loop, Shape, shortened
from ...ir.mode import Mode
from ..sampling import hint
from .rolled import Rolled

__all__ = ["Core", "prune"]


@dataclass
class Core:
    """A loop on graph nodes.

    Attributes:
        body: One step.
        steps: Number of steps; symbolic where it is that of an input's axis of any size.
        initial: Carried values before the first step.
        inputs: Whole tensors that are given slice by slice, with the axis of time.
        shared: What every step gets.
        stacked: Axis of time of each output.
        types: Value of each reference in one step.
        mode: What it runs under.
    """

    body: Body
    steps: Any
    initial: list[Node]
    inputs: list[tuple[Node, int]]
    shared: list[Node]
    stacked: list[int]
    types: dict[Ref, Any] = field(default_factory=dict)
    mode: Mode = ()

    def kernel(self) -> Loop:
        """The loop as an IR kernel."""
        axes = tuple(axis for _, axis in self.inputs)
        given = {"initial": self.initial, "inputs": [node for node, _ in self.inputs], "shared": self.shared}
        known = {role: tuple(map(_shape, nodes)) for role, nodes in given.items()}
        known["inputs"] = tuple(map(shortened, known["inputs"], axes))
        length = None if self.inputs else self.steps
        return Loop(self.body, length, axes, tuple(self.stacked), tuple(known.items()))

    def operands(self) -> dict[str, Any]:
        """Operands of ``kernel()`` by role."""
        return {"initial": self.initial, "inputs": [node for node, _ in self.inputs], "shared": self.shared}


def _shape(node: Node) -> Shape:
    value = node.meta["val"]
    if not isinstance(value, Tensor):
        return hint(value) if not isinstance(value, float) else value
    kind = "float" if value.is_floating_point() else "bool" if not value.dtype.itemsize > 1 else "long"
    return tuple(hint(size) for size in value.shape), kind


def prune(loop: Rolled, needed: list[Ref]) -> tuple[Rolled, dict[Ref, Ref]]:
    """The loop without what ``needed`` does not depend on, and where the references that stay have gone."""
    live: set[Ref] = set()
    waiting = list(needed)
    while waiting:
        ref = waiting.pop()
        if ref in live:
            continue
        live.add(ref)
        if ref.kind == "local":
            waiting += refs_of(loop.calls[ref.index])
        elif ref.kind == "carry":
            waiting.append(loop.carried[ref.index])
    order = {
        kind: sorted(ref.index for ref in live if ref.kind == kind) for kind in ("local", "carry", "step", "shared")
    }
    moved = {Ref(kind, old): Ref(kind, new) for kind, kept in order.items() for new, old in enumerate(kept)}
    pruned = Rolled(
        loop.steps,
        calls=[map_refs(loop.calls[i], moved.__getitem__) for i in order["local"]],
        carried=[moved[loop.carried[i]] for i in order["carry"]],
        initial=[loop.initial[i] for i in order["carry"]],
        inputs=[loop.inputs[i] for i in order["step"]],
        shared=[loop.shared[i] for i in order["shared"]],
        hoisted=loop.hoisted,
        outside=loop.outside,
    )
    return pruned, moved
