"""New nodes in a graph that is being rewritten, with the fake values that later passes read."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable
from typing import Any

from torch._dispatch.python import enable_python_dispatcher
from torch._guards import detect_fake_mode
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from ...ir.body import function_named
from ...ir.integral import Integral
from ..effects import is_random, written_arguments

__all__ = ["Emitter", "drop_dead"]


class Emitter:
    """Inserts nodes before ``place``, as if they came from the source of ``like``.

    Attributes:
        place: The node before which the next one goes.
        made: Every node made, in order.
    """

    def __init__(self, graph: Graph, place: Node, like: Node) -> None:
        self.graph, self.place, self.like = graph, place, like
        self.made: list[Node] = []
        self._mode = detect_fake_mode([node.meta.get("val") for node in graph.nodes if node.op != "output"])

    def __call__(self, target: str | Callable[..., Any], *args: Any, **kwargs: Any) -> Node:
        """A call of the operator named ``target`` (``aten.add.Tensor``, ``getitem``), or of a function."""
        with self.graph.inserting_before(self.place):
            node = self.graph.call_function(function_named(target), args, kwargs)
        return self._add(node, self.like)

    def copy(self, node: Node, known: dict[Node, Node]) -> Node:
        """Another node like ``node``, with operands replaced as ``known`` says."""
        with self.graph.inserting_before(self.place):
            twin = self.graph.node_copy(node, lambda old: known.get(old, old))
        twin.meta = dict(node.meta)
        self.made.append(twin)
        return twin

    def integral(self, integral: Integral, operands: dict[str, Any], values: tuple[Any, ...]) -> Node:
        """A call of an integral that returns a tuple like ``values``."""
        with self.graph.inserting_before(self.place):
            node = self.graph.call_module(integral.name, (), operands)
        self._add(node, self.like, values)
        node.meta["integral"] = integral
        return node

    def pieces(self, node: Node) -> list[Node]:
        """The values of a tuple, one node each."""
        return [self("getitem", node, index) for index in range(len(node.meta["val"]))]

    def run(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """``function`` on the fake values of nodes."""
        args, kwargs = map_arg((args, kwargs), lambda node: node.meta["val"])
        if self._mode is None:
            return function(*args, **kwargs)
        # What is asked of symbolic sizes here must not narrow the graph down.
        environment = self._mode.shape_env
        quiet = environment.suppress_guards() if environment is not None else contextlib.nullcontext()
        with self._mode, quiet, enable_python_dispatcher():  # some operators take symbolic sizes in Python alone
            return function(*args, **kwargs)

    def undo(self) -> None:
        """Erase everything that was made."""
        for node in reversed(self.made):
            if not node._erased:
                self.graph.erase_node(node)
        self.made.clear()

    def _add(self, node: Node, like: Node, value: Any = None) -> Node:
        kept = ("stack_trace", "nn_module_stack", "mode", "source_fn_stack", "torch_fn")
        node.meta = {key: like.meta[key] for key in kept if key in like.meta}
        node.meta["val"] = value if value is not None else self.run(node.target, *node.args, **node.kwargs)
        self.made.append(node)
        return node


def drop_dead(nodes: list[Node]) -> None:
    """Erase what has no users among ``nodes``, and what only such nodes used."""
    waiting = list(dict.fromkeys(nodes))
    while waiting:
        node = waiting.pop()
        if node._erased or node.users or node.op not in ("call_function", "call_module"):
            continue
        if node.op == "call_function" and (is_random(node) or written_arguments(node)):
            continue
        if node.target is not operator.getitem and not pytree.tree_leaves(node.meta.get("val")):
            continue
        sources = node.all_input_nodes
        node.graph.erase_node(node)
        waiting += sources
