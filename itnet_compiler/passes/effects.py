"""Alias and effect analysis: which tensors share storage, and which nodes write, draw random numbers or act otherwise.

A rewrite moves a region of nodes to one place. That is safe when the region itself has no effect, and when nothing
between its first and last node writes to a storage that the region reads.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable

import torch
from torch.fx import Graph, Node

from .custom import CustomCall
from .match import op_name

__all__ = ["Effects", "is_random", "written_arguments"]


def is_random(node: Node) -> bool:
    """Whether the node draws from a generator as it is called (dropout at rate 0 or in eval mode does not)."""
    target = node.target
    if isinstance(target, CustomCall):
        return target.random
    if not isinstance(target, torch._ops.OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    rate = _DROPOUT_ARGUMENTS.get(op_name(node))
    if rate is None:
        return True
    arguments = dict(zip((a.name for a in target._schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return bool(arguments.get(rate[0], 0.0)) and bool(arguments.get(rate[1], True) if rate[1] else True)


# operator → (argument holding the rate, argument holding the mode)
_DROPOUT_ARGUMENTS = {
    "aten.dropout.default": ("p", "train"),
    "aten.feature_dropout.default": ("p", "train"),
    "aten.alpha_dropout.default": ("p", "train"),
    "aten.scaled_dot_product_attention.default": ("dropout_p", ""),
    "aten.lstm.input": ("dropout", "train"),
    "aten.gru.input": ("dropout", "train"),
    "aten.rnn_tanh.input": ("dropout", "train"),
    "aten.rnn_relu.input": ("dropout", "train"),
}


def written_arguments(node: Node) -> list[Node]:
    """Graph nodes whose storage this call writes to."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return []
    written: list[Node] = []
    for position, argument in enumerate(node.target._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
        written += [item for item in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(item, Node)]
    if str(node.target).startswith(_KEEPS_STATISTICS) and len(node.args) > 5 and node.args[5]:
        written += [item for item in node.args[3:5] if isinstance(item, Node)]
    return written


# What writes its arguments 3 and 4 where argument 5 is true, and does not say so in its schema.
_KEEPS_STATISTICS = ("aten.batch_norm.", "aten.native_batch_norm.", "aten.instance_norm.")


def _aliased_arguments(node: Node) -> Iterable[Node]:
    """Arguments whose storage the result may share: views by schema; any operator we know nothing about."""
    if node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
        name = str(node.target)
        schema = node.target._schema
        maybe = name in _MAYBE_VIEWS
        for position, argument in enumerate(schema.arguments):
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            if argument.alias_info is not None or (maybe and position == 0):
                yield from (v for v in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(v, Node))
    elif node.op in ("call_module", "output") or (isinstance(node.target, CustomCall) and not node.target.views):
        return
    else:
        yield from node.all_input_nodes


# Composite operators that return their input, or a view of it, where they can.
_MAYBE_VIEWS = frozenset(
    f"aten.{name}"
    for name in (
        "reshape.default contiguous.default to.dtype to.device to.dtype_layout to.other flatten.using_ints"
        " dropout.default feature_dropout.default alpha_dropout.default unflatten.int view_as.default"
        " reshape_as.default expand_as.default squeeze.default movedim.int movedim.intlist swapaxes.default"
        " type_as.default float.default pad.default meshgrid.indexing broadcast_to.default atleast_1d.default"
        " adaptive_avg_pool1d.default ravel.default tile.default narrow.default chunk.default"
        " tensor_split.sections tensor_split.indices matrix_H.default conj.default resolve_conj.default"
        " resolve_neg.default real.default broadcast_tensors.default item.default"
    ).split()
)


class Effects:
    """The effects of one graph. Compute anew after the graph has changed."""

    def __init__(self, graph: Graph) -> None:
        self._order = {node: index for index, node in enumerate(graph.nodes)}
        self._parent: dict[Node, Node] = {node: node for node in graph.nodes}
        self.writes: list[tuple[int, frozenset[Node]]] = []
        self._classes: dict[Node, set[Node]] | None = None
        self._unread: dict[Node, str | None] = {}
        self.random: list[int] = []
        raw: list[tuple[int, list[Node]]] = []
        by_path: dict[str, Node] = {}  # a tied parameter is several nodes
        for node, index in self._order.items():
            tied = [by_path.setdefault(str(node.target), node)] if node.op == "get_attr" else []
            for source in (*tied, *_aliased_arguments(node)):
                self._parent[self._storage(source)] = self._storage(node)
            written = written_arguments(node)
            if written:
                raw.append((index, written))
            if is_random(node):
                self.random.append(index)
        for index, written in raw:
            self.writes.append((index, frozenset(self._storage(node) for node in written)))

    def _storage(self, node: Node) -> Node:
        self._parent.setdefault(node, node)  # an integral made since has storage of its own
        while self._parent[node] is not node:
            self._parent[node] = self._parent[self._parent[node]]
            node = self._parent[node]
        return node

    def sharing(self, node: Node) -> set[Node]:
        """Every node that may share the storage of ``node``, itself included."""
        if self._classes is None:
            self._classes = {}
            for other in self._order:
                self._classes.setdefault(self._storage(other), set()).add(other)
        return self._classes.get(self._storage(node), {node})

    def _is_internal(self, node: Node, inside: set[Node]) -> bool:
        """Whether all that shares the storage of ``node`` is in the region: a write to it is seen nowhere else."""
        return self.sharing(node) <= inside

    def writer_between(self, start: Node, stop: Node, nodes: Iterable[Node]) -> Node | None:
        """A node from ``start`` to ``stop`` that writes to the storage of one of ``nodes`` or of what these read."""
        if not self.writes:
            return None
        storages = {self._storage(n) for node in nodes for n in (node, *node.all_input_nodes)}
        first, last = self._order[start], self._order[stop]
        written = (index for index, found in self.writes if first < index <= last and storages & found)
        index = next(written, None)
        return None if index is None else next(n for n, place in self._order.items() if place == index)

    def written_after(self, node: Node, place: Node) -> bool:
        """Whether something behind ``place`` writes to the storage of ``node``."""
        storage, start = self._storage(node), self._order[place]
        return any(index > start and storage in storages for index, storages in self.writes)

    def read_again(self, writer: Node) -> str | None:
        """Why the operator in place ``writer`` cannot be taken for one that makes a new tensor, or None.

        Nothing may read what it has written but through its own result: every tensor that shares the storage is a
        fresh result or that of another operator in place, and is not used after the next write.
        """
        if writer in self._unread:
            return self._unread[writer]
        members = self.sharing(writer)
        writers = sorted((node for node in members if written_arguments(node)), key=self._order.__getitem__)
        places = [self._order[node] for node in writers]
        written, problem = set(writers), None
        for member in members:
            if member.op != "call_function" or (member not in written and next(iter(_aliased_arguments(member)), None)):
                problem = f"{op_name(writer)} writes in place to {member.name}, which is not of its step alone"
                break
            following = bisect.bisect_right(places, self._order[member])
            last = places[following] if following < len(places) else len(self._order)
            if any(self._order.get(user, -1) > last for user in member.users):
                problem = f"{op_name(writer)} writes in place to a value that is read again"
                break
        self._unread.update(dict.fromkeys(writers, problem))
        return problem

    def obstacle(self, region: Iterable[Node]) -> tuple[str, Node] | None:
        """Why ``region`` may not be replaced by one node, with the node at fault; None where it may."""
        nodes = sorted(region, key=self._order.__getitem__)
        inside = set(nodes)
        for node in nodes:
            for written in written_arguments(node):
                if not self._is_internal(written, inside):
                    return f"{op_name(node)} writes to its argument in place", node
        if len(nodes) <= 1:
            return None
        first, last = self._order[nodes[0]], self._order[nodes[-1]]
        by_index = {index: node for node, index in self._order.items()} if self.writes or self.random else {}
        for index, storages in self.writes:
            writer = by_index[index]
            if not first < index < last or writer in inside:
                continue
            # The one node reads everything where the last one stood: what was read before the write would change.
            before = {
                self._storage(n) for node in nodes if self._order[node] < index for n in (node, *node.all_input_nodes)
            }
            if storages & before:
                return f"{op_name(writer)} writes in place to a tensor of the region while it is computed", writer
        if any(is_random(node) for node in inside):
            for index in self.random:
                if first < index < last and by_index[index] not in inside:
                    return "another operator draws random numbers in between", by_index[index]
        return None
