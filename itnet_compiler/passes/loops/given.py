"""Loops that say they are loops: ``torch``'s higher-order operator ``scan`` becomes the node that a re-rolled one does.

Its step is a graph already, and its length need not be a number. What runs it is chosen as for any other core: a
library layer, linear scans, or step by step.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

from ...ir.body import Body, Call, Ref
from ...ir.mode import mode_of
from ..effects import is_random, written_arguments
from .called import Called
from .core import Core
from .emitter import Emitter
from .equivalence import Replacement
from .unrolled import NotALoop, key_of

__all__ = ["Given", "given_loops", "program"]


def given_loops(graph: Graph) -> list[Node]:
    """The calls of ``scan`` in a graph."""
    return [node for node in graph.nodes if str(node.target) == "scan" and node.op == "call_function"]


class Given(Called):
    """One call of ``scan``: ``scan(step, initial, inputs, shared)`` → final carries, then outputs stacked on axis 0."""

    def build(self, realise: Callable[[Core, Emitter], list[Node] | None]) -> Replacement | None:
        core, order = self._core()
        made = realise(core, self.emit)
        if made is None:
            self.emit.undo()
            return None
        results = []
        for place, number in enumerate(order):
            new = made[place]
            if place < len(core.stacked) and core.stacked[place]:
                new = self.emit("aten.movedim.int", new, core.stacked[place], 0)
            results.append((self.pieces[number], self.emit("aten.clone.default", new)))
        return Replacement([self.node, *self.pieces.values()], self.emit.made, results)

    def commit(self, replacement: Replacement) -> None:
        """Let everything use the new nodes; the step goes too where nothing else calls it."""
        step = self.node.args[0]
        super().commit(replacement)
        if isinstance(step, Node) and not step.users:
            step.graph.erase_node(step)

    def _core(self) -> tuple[Core, list[int]]:
        """The core, and which result of the call each of its own is."""
        step, initial, inputs, shared = self.node.args
        module = step.meta.get("graph_module") if isinstance(step, Node) else None
        operands: list[Any] = [*initial, *inputs, *shared]  # type: ignore[misc]
        if not isinstance(module, GraphModule) or not inputs:
            raise NotALoop("a scan over nothing", self.node)
        if any(not isinstance(one, Node) or not isinstance(one.meta.get("val"), Tensor) for one in operands):
            raise NotALoop("a scan with operands that are no tensors", self.node)
        count = len(initial)  # type: ignore[arg-type]
        calls, results = program(module, count, len(inputs))  # type: ignore[arg-type]
        outputs = [number for number in self.pieces if number >= count]
        finals = [number for number in self.pieces if number < count]
        if any(results[number].kind != "local" for number in finals):
            raise NotALoop("a scan that hands on what it is given", self.node)
        body = Body(
            tuple(calls),
            tuple(results[:count]),
            tuple(results[number] for number in outputs),
            tuple(results[number] for number in finals),
        )
        whole = [inputs[0], *(self._as_long(one, inputs[0]) for one in inputs[1:])]  # type: ignore[index, arg-type]
        steps = whole[0].meta["val"].shape[0]
        core = Core(
            body,
            steps,
            list(initial),  # type: ignore[arg-type]
            [(one, 0) for one in whole],  # type: ignore[misc]
            list(shared),  # type: ignore[arg-type]
            [0] * len(outputs),
            mode=mode_of(self.node),
        )
        first = [self.emit.run(lambda value: value.select(0, 0), node) for node, _ in core.inputs]
        before, kept = ([node.meta["val"] for node in nodes] for nodes in (core.initial, core.shared))
        core.types = self._types(body, before, first, kept)
        return core, [*outputs, *finals]

    def _as_long(self, one: Node, first: Node) -> Node:
        """An input as long as the first one, which says how many steps there are; longer ones are allowed."""
        if key_of(one.meta["val"])[2][0] == key_of(first.meta["val"])[2][0]:
            return one
        return self.emit("aten.slice.Tensor", one, 0, 0, self.emit("aten.sym_size.int", first, 0), 1)


def program(module: GraphModule, carries: int, inputs: int) -> tuple[list[Call], list[Ref]]:
    """The calls of a traced step, and what it returns. Raises ``NotALoop`` where it is more than operators."""
    known: dict[Node, Ref] = {}
    calls: list[Call] = []
    results: list[Ref] = []

    def operand(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return tuple(operand(item) for item in value)
        return known[value] if isinstance(value, Node) else value

    for node in module.graph.nodes:
        if node.op == "placeholder":
            index = len(known)
            kind = "carry" if index < carries else "step" if index < carries + inputs else "shared"
            before = {"carry": 0, "step": carries, "shared": carries + inputs}[kind]
            known[node] = Ref(kind, index - before)
        elif node.op == "output":
            returned = node.args[0]
            results = [operand(value) for value in returned]
        else:
            pure = isinstance(node.target, torch._ops.OpOverload) and not written_arguments(node)
            if node.target is not operator.getitem and (not pure or is_random(node)):
                raise NotALoop("a scan whose step is more than operators on tensors", node)
            name = "getitem" if node.target is operator.getitem else str(node.target)
            kwargs = tuple((key, operand(value)) for key, value in node.kwargs.items())
            calls.append(Call(name, tuple(operand(value) for value in node.args), kwargs))
            known[node] = Ref("local", len(calls) - 1)
    if any(not isinstance(value, Ref) for value in results):
        raise NotALoop("a scan that returns numbers")
    return calls, results
