"""Code generation: a rewritten graph becomes one straight-line Python function.

Everything is looked up once: operators are called through their Python bindings, integrals through the function that
their lowering built, parameters and buffers are arguments. Intermediate values are dropped after their last use, as
in the original's own frames. Neighbours of one mode share a ``with`` block; a block within another is nested, since
the outer one may hold state (autocast's casts of parameters).
"""

from __future__ import annotations

import linecache
import math
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from ..ir.integral import Integral
from ..ir.mode import Mode, mode_of
from ..lowering.bindings import OPERATORS, binding
from ..settings import CODE, debug, dump

__all__ = ["Generated", "generate"]

_serial = count()


@dataclass(frozen=True)
class Generated:
    """An executable graph.

    Attributes:
        function: Takes the tensors at ``paths``, then the graph's inputs; returns the model's return value, in a pair
            with a tuple of the graph's further outputs where there are any.
        paths: Paths of the parameters, buffers and constants that ``function`` takes first.
        source: Its Python source.
    """

    function: Callable[..., Any]
    paths: tuple[str, ...]
    source: str


def generate(graph: Graph, output: pytree.TreeSpec, constants: dict[str, Any]) -> Generated:
    """Write and compile the function of ``graph``; ``output`` is the structure of the model's return value."""
    writer = _Writer(graph, constants)
    source = writer.write(output)
    filename = f"<itnet generated {next(_serial)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(True), filename)
    exec(compile(source, filename, "exec"), writer.scope)
    debug(CODE, "%s", source)
    dump("code", source)
    return Generated(writer.scope["run"], tuple(writer.paths), source)


class _Writer:
    def __init__(self, graph: Graph, constants: dict[str, Any]) -> None:
        self.graph, self.constants = graph, constants
        self.scope: dict[str, Any] = {"torch": torch, "inf": math.inf, "nan": math.nan}
        self.paths: list[str] = []
        self.names: dict[Node, str] = {}
        self.functions: dict[int, str] = {}

    def write(self, output: pytree.TreeSpec) -> str:
        tensors, inputs = self._arguments()
        last_use: dict[Node, Node] = {}
        for node in self.graph.nodes:
            for source in node.all_input_nodes:
                last_use[source] = node
        dying: dict[Node, list[str]] = {}
        for source, node in last_use.items():
            dying.setdefault(node, []).append(self.names.get(source) or self._name(source))
        lines: list[str] = []
        open_blocks: Mode = ()
        for node in self.graph.nodes:
            if node.op in ("placeholder", "get_attr"):
                continue
            if node.op == "output":
                lines.append(f"    return {self._result(node, output)}")
                continue
            lines += _openings(open_blocks, mode_of(node))
            open_blocks = mode_of(node)
            statement = self._expression(node)
            if node.users:
                statement = f"{self._name(node)} = {statement}"
            dead = [name for name in dying.get(node, ()) if name in self.locals]
            lines.append(_indent(len(open_blocks)) + statement + (f"; {' = '.join(dead)} = None" if dead else ""))
        return f"def run({', '.join([*tensors, *inputs])}):\n" + "\n".join(lines) + "\n"

    def _arguments(self) -> tuple[list[str], list[str]]:
        by_path: dict[str, str] = {}
        inputs = []
        self.locals: set[str] = set()
        for node in self.graph.nodes:
            if node.op == "placeholder":
                inputs.append(self._name(node))
            elif node.op == "get_attr":
                path = str(node.target)
                value = self.constants.get(path)
                if value is not None and not isinstance(value, torch.Tensor):
                    self.names[node] = self._global(value, path)
                    continue
                if path not in by_path:
                    by_path[path] = self._name(node)
                    self.paths.append(path)
                self.names[node] = by_path[path]
            elif node.op != "output":
                self.locals.add(self._name(node))
        # An argument stays alive in the caller's list; releasing the local name frees nothing.
        return list(by_path.values()), inputs

    def _name(self, node: Node) -> str:
        if node not in self.names:
            self.names[node] = "v_" + re.sub(r"\W", "_", node.name)
        return self.names[node]

    def _global(self, value: Any, hint: str) -> str:
        if id(value) not in self.functions:
            base = name = re.sub(r"\W", "_", hint).lstrip("0123456789") or "constant"
            for number in count(1):
                if name not in self.scope:
                    break
                name = f"{base}_{number}"
            self.scope[name] = value
            self.functions[id(value)] = name
        return self.functions[id(value)]

    def _expression(self, node: Node) -> str:
        if node.op == "call_module":
            integral: Integral = node.meta["integral"]
            function = self._global(integral.executable.function, f"integral_{integral.name}")
            return f"{function}({', '.join(self._text(value) for value in node.kwargs.values())})"
        if node.target is operator.getitem:
            return f"{self._text(node.args[0])}[{self._text(node.args[1])}]"
        if node.target in OPERATORS and len(node.args) == 2:
            return f"{self._text(node.args[0])} {OPERATORS[node.target]} {self._text(node.args[1])}"
        target = binding(node.target)
        hint = getattr(target, "__name__", str(node.target))
        arguments = [self._text(value) for value in node.args]
        arguments += [f"{name}={self._text(value)}" for name, value in node.kwargs.items()]
        return f"{self._global(target, hint)}({', '.join(arguments)})"

    def _text(self, value: Any) -> str:
        if isinstance(value, Node):
            return self._name(value)
        if isinstance(value, list):
            return f"[{', '.join(self._text(item) for item in value)}]"
        if isinstance(value, tuple):
            return f"({', '.join(self._text(item) for item in value)}{',' if len(value) == 1 else ''})"
        if isinstance(value, dict):
            return "{" + ", ".join(f"{self._text(k)}: {self._text(v)}" for k, v in value.items()) + "}"
        if isinstance(value, slice):
            return f"slice({self._text(value.start)}, {self._text(value.stop)}, {self._text(value.step)})"
        if value is None or value is Ellipsis or isinstance(value, (bool, int, float, str)):
            return repr(value) if value is not Ellipsis else "..."
        if isinstance(value, (torch.dtype, torch.memory_format, torch.layout)):
            return str(value)
        return self._global(value, type(value).__name__)

    def _result(self, node: Node, output: pytree.TreeSpec) -> str:
        leaves = [self._text(value) for value in node.args[0]]  # type: ignore[union-attr]
        count = output.num_leaves
        if further := leaves[count:]:
            return f"({self._structured(leaves[:count], output)}), ({', '.join(further)},)"
        return self._structured(leaves, output)

    def _structured(self, leaves: list[str], output: pytree.TreeSpec) -> str:
        if output.is_leaf():
            return leaves[0]
        flat = all(child.is_leaf() for child in output.children())
        if output.type in (tuple, list) and flat and len(leaves) == output.num_children:
            inside = ", ".join(leaves)
            return f"[{inside}]" if output.type is list else f"({inside}{',' if len(leaves) == 1 else ''})"
        unflatten, spec = self._global(pytree.tree_unflatten, "tree_unflatten"), self._global(output, "structure")
        return f"{unflatten}([{', '.join(leaves)}], {spec})"


def _openings(now: Mode, mode: Mode) -> list[str]:
    """The ``with`` lines that lead from the blocks ``now`` open to those of ``mode``; closing takes none."""
    shared = next((i for i, (a, b) in enumerate(zip(now, mode, strict=False)) if a != b), min(len(now), len(mode)))
    return [f"{_indent(depth)}with {mode[depth].source()}:" for depth in range(shared, len(mode))]


def _indent(depth: int) -> str:
    return "    " * (depth + 1)
