"""The one printer: a rewritten graph as text, one line a node.

Names come from module paths and are assigned while printing. Inside a block (``// layer1.0``) they are relative to
it; a name from elsewhere is written in full, with a leading slash where the block has the same name itself. Support
nodes (asserts, size arithmetic, getitem) are folded into the lines that use them: ``%lstm.0`` is the first of the
values that ``%lstm`` returns. What runs within a ``with torch.no_grad():`` block and its kin ends in ``in no_grad``.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from .mode import describe_mode, mode_of
from .naming import Naming, is_hidden, operator_name, source_line
from .sizes import Sizes, dtype_name

__all__ = ["Printer", "print_graph"]

_WIDTH = 100
# Names are padded to a common width within a block, but never beyond this one.
_NAME_WIDTH = 32
# More parameters of one module than this are shown as the first and the last.
_MOST_PARAMETERS = 5
# Arguments that say nothing about what is computed.
_NOISE = frozenset({"cudnn_enabled", "cudnn_enable", "pin_memory", "layout"})
# Arguments that are operands even where they are plain numbers.
_OPERANDS = frozenset({"other", "exponent"})
# Operand roles that go without saying; the others are written as ``role=``.
_PLAIN_ROLES = frozenset({"input", "query", "key", "value"})


def print_graph(graph: Graph, name: str, *, only_integrals: bool = False) -> str:
    """The whole graph as text; with ``only_integrals`` just the integral lines under their block headers."""
    return Printer(graph).graph(name, only_integrals=only_integrals)


class Printer:
    """Prints one graph, or single lines of it.

    Attributes:
        sizes: Names of its symbolic sizes.
        naming: Names and blocks of its nodes.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self.sizes, self.naming = Sizes(graph), Naming(graph)

    def graph(self, name: str, *, only_integrals: bool = False) -> str:
        """The text form of the whole graph."""
        shown = [node for node in self.naming.shown if not only_integrals or "integral" in node.meta]
        lines = [self.signature(name) + " {"]
        for block, group in groupby(shown, key=self.naming.block.__getitem__):
            nodes = list(group)
            if block or len(lines) > 1:
                lines.append(_header(block or name, next(filter(None, map(source_line, nodes)), None)))
            width = max((w for node in nodes if (w := len(self.naming.local(node))) <= _NAME_WIDTH), default=0)
            for node in nodes:
                lines.append(f"  {self.line(node, width)}")
                lines += [f"      {text}" for text in _details(node)]
        return "\n".join([*lines, f"  {self.returns()}", "}"])

    def signature(self, name: str) -> str:
        """``resnet(%x: f32[N,3,224,224])``."""
        inputs = self._graph.find_nodes(op="placeholder")
        return f"{name}({', '.join(self._typed('%' + self.naming.name[node], node) for node in inputs)})"

    def returns(self) -> str:
        """``return %fc``."""
        results = self._graph.output_node().args[0]
        single = isinstance(results, (list, tuple)) and len(results) == 1
        return f"return {self.argument(results[0] if single else results, '')}"  # type: ignore[index]

    def line(self, node: Node, width: int = 0) -> str:
        """One node, its name padded to ``width``."""
        block = self.naming.block[node]
        call = self._integral(node, block) if "integral" in node.meta else self._operator(node, block)
        if mode_of(node):
            call += f"   in {describe_mode(mode_of(node))}"
        kind = self.sizes.type(node.meta.get("val"))
        name = f"%{self.naming.local(node)}" + (":" if kind else "")
        return f"{name.ljust(width + 2)} {kind} = {call}" if kind else f"{name.ljust(width + 2)} = {call}"

    def _typed(self, text: str, node: Node) -> str:
        kind = self.sizes.type(node.meta.get("val"))
        return f"{text}: {kind}" if kind else text

    def _integral(self, node: Node, block: str) -> str:
        integral = node.meta["integral"]
        parts: list[tuple[str, Any]] = []
        for role, value in node.kwargs.items():
            named_alike = isinstance(value, Node) and value.op == "get_attr" and str(value.target).endswith(role)
            parts.append(("" if role in _PLAIN_ROLES or named_alike else role, value))
        plan = f"   @{integral.plan.lowering}" if integral.plan is not None else ""
        return f"integral({self._arguments(parts, block)}) {integral.spec.describe()}{plan}"

    def _operator(self, node: Node, block: str) -> str:
        return f"{operator_name(node)}({self._arguments(list(_given(node)), block)})"

    def _arguments(self, parts: Sequence[tuple[str, Any]], block: str) -> str:
        """Arguments joined by commas; neighbouring parameters of one module as ``%bn1.{weight,bias}``."""
        texts: list[str] = []
        for owner, group in groupby(parts, key=lambda part: _owner(part[1]) if not part[0] else None):
            items = list(group)
            if owner is None or len(items) == 1:
                texts += [f"{name}={self.argument(v, block)}" if name else self.argument(v, block) for name, v in items]
            else:
                texts.append(self._parameters([value for _, value in items], block))
        return ", ".join(texts)

    def _parameters(self, nodes: Sequence[Node], block: str) -> str:
        texts = [self.naming.refer(node, block) for node in nodes]
        owner = texts[0].rpartition(".")[0]
        names = [text.rpartition(".")[2] for text in texts]
        inner = ",".join(names) if len(names) <= _MOST_PARAMETERS else f"{names[0]} … {names[-1]}"
        return f"%{owner}.{{{inner}}}" if owner else f"%{{{inner}}}"

    def argument(self, value: Any, block: str) -> str:
        """Any argument, as seen from ``block``: a node's name, a size, a literal, or a container of these."""
        if isinstance(value, Node):
            return self._reference(value, block)
        if isinstance(value, (list, tuple)):
            owners = {_owner(item) for item in value}
            if len(value) > 1 and len(owners) == 1 and None not in owners:
                return self._parameters(value, block)
            opening, closing = "[]" if isinstance(value, list) else "()"
            plain = all(not isinstance(item, Node) or _is_size(item) for item in value)
            return opening + ("," if plain else ", ").join(self.argument(item, block) for item in value) + closing
        if isinstance(value, dict):
            return "{" + ", ".join(f"{key}: {self.argument(item, block)}" for key, item in value.items()) + "}"
        if isinstance(value, torch.dtype):
            return dtype_name(value)
        if isinstance(value, torch.device):
            return str(value)
        if isinstance(value, float):
            return f"{value:.6g}"
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return self.sizes.text(value)
        return str(value).removeprefix("torch.") if not isinstance(value, str) else repr(value)

    def _reference(self, node: Node, block: str) -> str:
        if _is_size(node):
            return self.sizes.text(node.meta["val"])
        if node.op == "call_function" and node.target is operator.getitem:
            return f"{self.argument(node.args[0], block)}.{self.argument(node.args[1], block)}"
        mark = "@" if node.op == "get_attr" and not isinstance(node.meta.get("val"), Tensor) else "%"
        return f"{mark}{self.naming.refer(node, block)}"


def _details(node: Node) -> list[str]:
    return node.meta["integral"].kernel.details() if "integral" in node.meta else []


def _header(block: str, line: str | None) -> str:
    text = f"  // {block}"
    return text if line is None else f"{text} {line.rjust(_WIDTH - len(text) - 1)}"


def _owner(value: Any) -> str | None:
    """Path of the module that a parameter belongs to; None for anything else."""
    if isinstance(value, Node) and value.op == "get_attr" and isinstance(value.meta.get("val"), Tensor):
        return str(value.target).rpartition(".")[0]
    return None


def _is_size(node: Node) -> bool:
    return isinstance(node.meta.get("val"), (torch.SymInt, torch.SymFloat, torch.SymBool)) and is_hidden(node)


def _given(node: Node) -> Iterator[tuple[str, Any]]:
    """Arguments worth showing, with a name where the value does not speak for itself.

    Left out are defaults and choices between equal implementations. Tensors, sizes and lists stand by position as long
    as nothing before them was left out.
    """
    if not isinstance(node.target, torch._ops.OpOverload):
        yield from (("", value) for value in node.args)
        yield from node.kwargs.items()
        return
    skipped = False
    for position, argument in enumerate(node.target._schema.arguments):
        if position >= len(node.args) and argument.name not in node.kwargs:
            skipped = True
            continue
        value = node.args[position] if position < len(node.args) else node.kwargs[argument.name]
        if argument.name in _NOISE or _is_default(argument, value) or _is_idle(node, argument.name, value):
            skipped = True
            continue
        speaks = isinstance(value, (Node, list, tuple)) or type(value) is int or argument.name in _OPERANDS
        yield ("" if speaks and not skipped else argument.name), value


def _is_idle(node: Node, name: str, value: Any) -> bool:
    """Whether an argument has no effect in this call."""
    if name == "momentum":
        return operator_name(node) == "batch_norm" and not node.args[5]
    return name == "device" and str(value) == "cpu" and operator_name(node) != "to"


def _is_default(argument: torch.Argument, value: Any) -> bool:
    if value == torch.iinfo(torch.int64).max:  # "to the end", of a slice
        return True
    if not argument.has_default_value() or isinstance(value, Node):
        return value is None
    default = argument.default_value
    same_kind = type(value) is type(default) or isinstance(value, (list, tuple))
    return same_kind and _plain(value) == _plain(default)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, (list, tuple)) else value
