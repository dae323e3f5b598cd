"""One graph for every length, out of two graphs that were captured at one length each and whose loops are re-rolled.

The nodes of both are paired in order. Operators, operands and specs must be the same; where whole numbers or sizes
differ, each becomes the affine function a·T + b of the length T that takes both values. Every value whose size depends
on T then gets its sizes from its operator, run on symbolic ones, which must be the sizes that were put together.

Two lengths suggest the graph of a third, they do not prove it: a forward may branch on its length. Whoever runs the
graph at a further length holds it against the original there.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import Tensor
from torch._guards import detect_fake_mode
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.value_ranges import ValueRanges

from ...ir.integral import Integral
from ...ir.kernel import Spec
from ...ir.loop import SHORT, Loop
from ...ir.mode import mode_of
from ...lowering.base import default_lowering
from ..custom import CustomCall
from ..operators import operator_name
from ..sampling import sizes_of
from .emitter import Emitter

__all__ = ["Captured", "NotGeneral", "Spot", "generalise"]

# An input and an axis of it.
Spot = tuple[int, int]


class NotGeneral(Exception):
    """Why two graphs are not one graph at two lengths, in one sentence."""


@dataclasses.dataclass(frozen=True)
class Captured:
    """A re-rolled graph for one length.

    Attributes:
        graph: With fake values on its nodes.
        length: That of the loop's axis.
        constants: Values of ``get_attr`` nodes that exist in the capture only.
        symbols: The other sizes: where each is found first.
    """

    graph: Graph
    length: int
    constants: Mapping[str, Any]
    symbols: Mapping[sympy.Symbol, str]


def generalise(first: Captured, second: Captured, spots: frozenset[Spot]) -> Graph:
    """The graph for every length from the smaller one on, with the sizes at ``spots`` symbolic.

    Args:
        first: Gives the graph its nodes, names and symbols.
        second: The same at another length.
        spots: The inputs' axes whose size is the length.

    Raises:
        NotGeneral: where the two are not the same but for numbers that change evenly with the length.
    """
    return _Generaliser(first, second, spots).run()


class _Generaliser:
    def __init__(self, first: Captured, second: Captured, spots: frozenset[Spot]) -> None:
        self.first, self.second, self.spots = first, second, spots
        self.graph = Graph()
        self.twins: dict[Node, Node] = {}
        self.pairs: dict[Node, Node] = {}
        self.numbers: dict[tuple[int, int], Node] = {}
        self.mode = detect_fake_mode([node.meta.get("val") for node in first.graph.nodes])
        if self.mode is None or self.mode.shape_env is None:
            raise NotGeneral("nothing was traced")
        self.environment: ShapeEnv = self.mode.shape_env
        self.length = self._new_symbol()
        there = {spot: symbol for symbol, spot in first.symbols.items()}
        self.renamed = {symbol: there[spot] for symbol, spot in second.symbols.items() if spot in there}
        self.emit = Emitter(first.graph, next(iter(first.graph.nodes)), next(iter(first.graph.nodes)))

    def _new_symbol(self) -> sympy.Symbol:
        if min(self.first.length, self.second.length) < 2:
            raise NotGeneral("a size of 0 or 1 is no length of a loop")
        from torch._dynamo.source import ConstantSource  # slow to import; torch.export does so anyway

        name = f"itnet_length_{len(self.environment.var_to_range)}"
        least = min(self.first.length, self.second.length)
        symbol = self.environment.create_symbol(
            self.first.length, ConstantSource(name), DimDynamic.DYNAMIC, constraint_dim=None
        )
        self.environment.var_to_range[symbol] = ValueRanges(
            sympy.Integer(least), self.environment.var_to_range[symbol].upper
        )
        return symbol

    def run(self) -> Graph:
        mine, theirs = _live(self.first.graph), _live(self.second.graph)
        for a, b in zip(mine, theirs, strict=False):
            self._check_same(a, b)
            self.pairs[b] = a
            self.twins[a] = self._node(a, b)
        if len(mine) != len(theirs):
            raise NotGeneral(f"at one length there are {len(mine)} nodes, at the other {len(theirs)}")
        if not self.numbers and not any(self._depends(node) for node in self.graph.nodes):
            raise NotGeneral("nothing in the graph depends on the length")
        self.graph.lint()
        return self.graph

    def _depends(self, node: Node) -> bool:
        return any(
            self.length in size.node.expr.free_symbols for size in sizes_of([node]) if isinstance(size, torch.SymInt)
        )

    # ---- pairs of nodes

    def _check_same(self, a: Node, b: Node) -> None:
        same = a.op == b.op and mode_of(a) == mode_of(b) and len(a.args) == len(b.args) and [*a.kwargs] == [*b.kwargs]
        if same and a.op == "call_function":
            same = a.target == b.target
        elif same and a.op == "get_attr":
            same = self._same_tensor(str(a.target), str(b.target))
        elif same and a.op == "call_module":
            same = _comparable(a.meta["integral"]) == _comparable(b.meta["integral"])
        if not same:
            raise NotGeneral(f"{_name(b)} stands where at the other length {_name(a)} does")

    def _same_tensor(self, mine: str, theirs: str) -> bool:
        a, b = self.first.constants.get(mine), self.second.constants.get(theirs)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return a is b or (a.dtype == b.dtype and a.device == b.device and torch.equal(a, b))
        return mine == theirs and a is b

    def _node(self, a: Node, b: Node) -> Node:
        args = self._merged(a.args, b.args, a)
        kwargs = self._merged(dict(a.kwargs), dict(b.kwargs), a)
        twin = self.graph.create_node(a.op, a.target, args, kwargs, name=a.name)
        twin.meta = dict(a.meta)
        if a.op == "call_module" and getattr(a.meta["integral"].kernel, "length", None) is not None:
            self._count_steps(twin, a.meta["integral"].kernel.length, b.meta["integral"].kernel.length)
        if a.op != "output":
            twin.meta["val"] = self._value(a, b, twin)
        return twin

    def _count_steps(self, twin: Node, mine: int, theirs: int) -> None:
        """Give a loop whose steps are given nothing their numbers, where how many there are depends on the length."""
        if mine == theirs:
            return
        integral: Integral = twin.meta["integral"]
        kernel = integral.kernel
        assert isinstance(kernel, Loop)
        with self.graph.inserting_before(twin):
            steps = self._number(*self._line(mine, theirs, twin))
            device = next(node.meta["val"] for node in twin.all_input_nodes).device
            numbers = self.graph.call_function(torch.ops.aten.arange.default, (steps,), {"device": device})
        numbers.meta = {key: twin.meta[key] for key in ("nn_module_stack", "stack_trace", "mode") if key in twin.meta}
        numbers.meta["val"] = self.emit.run(torch.ops.aten.arange.default, steps, device=device)
        shapes = {**dict(kernel.shapes), "inputs": (((SHORT,), "long"),)}
        kernel = dataclasses.replace(kernel, length=None, axes=(0,), shapes=tuple(shapes.items()))
        spec = dataclasses.replace(integral.spec, kernel=kernel)
        twin.kwargs = {**twin.kwargs, "inputs": [numbers]}
        twin.meta["integral"] = counted = copy.copy(integral)
        counted.spec, counted.executable = spec, default_lowering(spec).build(spec)

    def _value(self, a: Node, b: Node, twin: Node) -> Any:
        mine: Any = a.meta.get("val")
        theirs: Any = b.meta.get("val")
        if a.op == "placeholder":
            self._check_input(a, mine, theirs)
        value = self._merged_value(mine, theirs, a)
        if value is mine or not isinstance(a.target, (torch._ops.OpOverload, CustomCall)):
            return value
        try:
            made = self.emit.run(a.target, *twin.args, **twin.kwargs)
        except Exception as error:
            raise NotGeneral(f"{_name(a)} does not run at any length ({type(error).__name__})") from None
        if not self._same_sizes(made, value):
            raise NotGeneral(f"the sizes of {_name(a)} do not change evenly with the length")
        return value

    def _check_input(self, node: Node, mine: Tensor, theirs: Tensor) -> None:
        index = [other for other in self.first.graph.nodes if other.op == "placeholder"].index(node)
        for axis, (one, other) in enumerate(zip(mine.shape, theirs.shape, strict=True)):
            fixed = _expression(one).is_Integer
            lengths = (self.first.length, self.second.length)
            if (index, axis) in self.spots and (_expression(one), _expression(other)) != lengths:
                raise NotGeneral("an input has another size than the loop has steps")
            if (index, axis) not in self.spots and fixed and _expression(one) != _expression(other):
                raise NotGeneral("an input has another fixed size")

    # ---- values that differ

    def _merged(self, a: Any, b: Any, node: Node) -> Any:
        """An argument out of those of both graphs; raises where they differ by more than a number."""
        if isinstance(a, Node) and isinstance(b, Node) and self.pairs.get(b) is a:
            return self.twins[a]
        if isinstance(a, Node) or isinstance(b, Node):
            raise NotGeneral(f"an operand of {_name(node)} comes from elsewhere")
        if isinstance(a, (list, tuple)) and type(a) is type(b) and len(a) == len(b):
            return type(a)(self._merged(x, y, node) for x, y in zip(a, b, strict=True))
        if isinstance(a, dict) and isinstance(b, dict) and [*a] == [*b]:
            return {key: self._merged(a[key], b[key], node) for key in a}
        if type(a) is type(b) and a == b:
            return a
        if type(a) is int and type(b) is int:
            return self._number(*self._line(a, b, node))
        raise NotGeneral(f"{_name(node)} takes {_short(a)} at one length and {_short(b)} at the other")

    def _line(self, a: int, b: int, node: Node) -> tuple[int, int]:
        """The numbers of slope·T + offset."""
        slope, rest = divmod(b - a, self.second.length - self.first.length)
        if rest:
            raise NotGeneral(f"a number of {_name(node)} changes unevenly with the length: {a}, {b}")
        return slope, a - slope * self.first.length

    def _number(self, slope: int, offset: int) -> Node:
        """A node with the value slope·T + offset."""
        if (slope, offset) in self.numbers:
            return self.numbers[slope, offset]
        if (slope, offset) == (1, 0):
            index, axis = min(self.spots)
            source = [node for node in self.graph.nodes if node.op == "placeholder"][index]
            made = self.graph.call_function(torch.ops.aten.sym_size.int, (source, axis))
        elif offset:
            made = self.graph.call_function(operator.add, (self._number(slope, 0), offset))
        else:
            made = self.graph.call_function(operator.mul, (self._number(1, 0), slope))
        made.meta["val"] = self._symbolic(slope * self.length + offset)
        self.numbers[slope, offset] = made
        return made

    def _symbolic(self, expression: sympy.Expr) -> Any:
        if expression.is_Integer:
            return int(expression)
        known = {**getattr(self.environment, "backed_var_to_val", {}), self.length: self.first.length}
        value = expression.xreplace({symbol: sympy.Integer(known[symbol]) for symbol in expression.free_symbols})
        return self.environment.create_symintnode(expression, hint=int(value))

    def _merged_value(self, a: Any, b: Any, node: Node) -> Any:
        """The fake value for every length; ``a`` itself where nothing in it changes."""
        if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
            made = [self._merged_value(x, y, node) for x, y in zip(a, b, strict=True)]
            return a if all(x is y for x, y in zip(made, a, strict=True)) else type(a)(made)
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            if (a.dtype, a.device, a.dim()) != (b.dtype, b.device, b.dim()):
                raise NotGeneral(f"{_name(node)} gives another type at another length")
            sizes = [
                self._size(x, y, node) for x, y in zip((*a.shape, *a.stride()), (*b.shape, *b.stride()), strict=True)
            ]
            if not any(self.length in size.free_symbols for size in sizes):
                return a
            numbers = [self._symbolic(size) for size in sizes]
            with self.mode, self.environment.suppress_guards():
                return torch.empty_strided(numbers[: a.dim()], numbers[a.dim() :], dtype=a.dtype, device=a.device)
        if isinstance(a, (int, torch.SymInt)) and isinstance(b, (int, torch.SymInt)) and not isinstance(a, bool):
            size = self._size(a, b, node)
            return self._symbolic(size) if self.length in size.free_symbols else a
        if type(a) is not type(b):
            raise NotGeneral(f"{_name(node)} gives another type at another length")
        return a

    def _size(self, a: Any, b: Any, node: Node) -> sympy.Expr:
        """A size or stride as a function of T and the other sizes."""
        mine, theirs = _expression(a), _expression(b).xreplace(self.renamed)
        step = self.second.length - self.first.length
        slope = sympy.expand((theirs - mine) / step)
        if slope == 0:
            return mine
        whole = all(factor.is_Integer for factor in slope.as_coefficients_dict().values())
        if not whole or not slope.free_symbols <= self.first.symbols.keys():
            raise NotGeneral(f"the sizes of {_name(node)} do not change evenly with the length")
        return sympy.expand(mine + slope * (self.length - self.first.length))

    def _same_sizes(self, made: Any, expected: Any) -> bool:
        if isinstance(expected, (list, tuple)):
            same = isinstance(made, (list, tuple)) and len(made) == len(expected)
            return same and all(map(self._same_sizes, made, expected))
        if not isinstance(expected, Tensor):
            return True
        if not isinstance(made, Tensor) or (made.dtype, made.dim()) != (expected.dtype, expected.dim()):
            return False
        pairs = zip(map(_expression, made.shape), map(_expression, expected.shape), strict=True)
        lengths = (self.first.length, self.second.length, self.first.length + 5, 2 * self.first.length + 1)
        return all(self._at(x, length) == self._at(y, length) for x, y in pairs for length in lengths)

    def _at(self, expression: sympy.Expr, length: int) -> sympy.Expr:
        others = sorted(expression.free_symbols - {self.length}, key=str)
        bindings = {symbol: 11 + 2 * index for index, symbol in enumerate(others)} | {self.length: length}
        return expression.subs(bindings)


def _live(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.users or node.op != "get_attr"]


def _comparable(integral: Integral) -> Spec:
    """The spec without the sizes of the example that a loop keeps, and without its length."""
    spec: Spec = integral.spec
    if isinstance(spec.kernel, Loop):
        length = None if spec.kernel.length is None else 0
        return dataclasses.replace(spec, kernel=dataclasses.replace(spec.kernel, shapes=(), length=length))
    return spec


def _expression(size: Any) -> sympy.Expr:
    return sympy.Integer(size) if isinstance(size, int) else size.node.expr


def _name(node: Node) -> str:
    if node.op == "call_module":
        return f"{node.meta['integral'].origin} {node.target}"
    return node.op if node.op in ("placeholder", "output", "get_attr") else operator_name(node)


def _short(value: Any) -> str:
    return value.__class__.__name__ if isinstance(value, (Tensor, list, tuple, dict)) else str(value)
