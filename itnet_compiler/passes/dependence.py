"""What each value of a graph depends on: nothing but parameters and sizes, raw inputs, or learned features.

An activation is a value computed from floating model inputs, or from any model input together with something learned
(a token embedding). Masks and position numbers made from token ids are no activations, nor is what depends on
parameters alone.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .operators import ALIASES, CREATIONS, EMBEDDINGS, LIKE, MIXING, operator_name

__all__ = ["Dependence", "dependences", "is_parameter", "tensors_of"]

# Lifted parameters, buffers and constants of an ExportedProgram, before they are turned back into attributes.
_LIFTED = ("p_", "b_", "c_", "obj_")


class Dependence(enum.IntEnum):
    """Ordered: what depends on several things is the largest of them."""

    CONSTANT = 0
    INPUT = 1
    ACTIVATION = 2


def tensors_of(node: Node) -> list[Tensor]:
    """Tensors among the node's recorded values."""
    value = node.meta.get("val")
    return [item for item in (value if isinstance(value, (tuple, list)) else (value,)) if isinstance(item, Tensor)]


def is_parameter(node: Node) -> bool:
    """Whether the node is a parameter, buffer or constant of the model, as ``get_attr`` or lifted placeholder."""
    if node.op == "get_attr":
        return True
    if node.op != "placeholder" or not node.name.startswith(_LIFTED):
        return False
    return not any(other.op == "get_attr" and tensors_of(other) for other in node.graph.nodes)


def dependences(graph: Graph) -> dict[Node, Dependence]:
    """Dependence of every node; what is written in place through a view reaches the tensor it is a view of."""
    lifted = not any(node.op == "get_attr" and tensors_of(node) for node in graph.nodes)
    found: dict[Node, Dependence] = {}
    storage: dict[Node, Node] = {}
    written: dict[Node, Dependence] = {}

    def level(node: Node) -> Dependence:
        return max(found[node], written.get(storage[node], Dependence.CONSTANT))

    for node in graph.nodes:
        storage[node] = _storage(node, storage)
        if node.op == "placeholder":
            found[node] = _of_placeholder(node, lifted)
        elif node.op in ("get_attr", "output") or not tensors_of(node) or operator_name(node) in LIKE | CREATIONS:
            found[node] = Dependence.CONSTANT
        else:
            found[node] = _of_call(node, [level(source) for source in node.all_input_nodes])
        for target in _written(node):
            root = storage[target]
            written[root] = max(written.get(root, Dependence.CONSTANT), found[node])
    return {node: level(node) for node in graph.nodes}


def _of_placeholder(node: Node, lifted: bool) -> Dependence:
    if lifted and node.name.startswith(_LIFTED):
        return Dependence.CONSTANT
    tensors = tensors_of(node)
    if any(item.is_floating_point() or item.is_complex() for item in tensors):
        return Dependence.ACTIVATION
    return Dependence.INPUT if tensors else Dependence.CONSTANT


def _of_call(node: Node, levels: list[Dependence]) -> Dependence:
    highest = max(levels, default=Dependence.CONSTANT)
    if highest is not Dependence.INPUT:
        return highest
    floating = any(item.is_floating_point() or item.is_complex() for item in tensors_of(node))
    learned = any(item.requires_grad for source in node.all_input_nodes for item in tensors_of(source))
    layer = operator_name(node) in EMBEDDINGS | MIXING.keys() | {"linear"} or "integral" in node.meta
    return Dependence.ACTIVATION if floating and (learned or layer) else Dependence.INPUT


def _storage(node: Node, storage: dict[Node, Node]) -> Node:
    """The first node whose storage this one may share."""
    if node.op == "call_function" and operator_name(node) in ALIASES and node.args and isinstance(node.args[0], Node):
        return storage[node.args[0]]
    in_place = next(_written(node), None)
    return storage[in_place] if in_place is not None and in_place in storage else node


def _written(node: Node) -> Iterator[Node]:
    """Arguments that the call writes to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return
    for position, argument in enumerate(node.target._schema.arguments):
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write and isinstance(value, Node):
            yield value
