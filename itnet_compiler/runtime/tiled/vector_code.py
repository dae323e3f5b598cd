"""Writes the loops of a pair program as LLVM code: every number of a pair is a vector over neighbouring sources."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from ...ir.pair.program import PAIR, QUERY, SHARED, SOURCE, Program, Shape
from .schedule import Loop, Schedule
from .vector_math import FUNCTIONS, VectorMath

__all__ = ["GROUPS", "INDEX", "Frame", "Layout", "VectorCode", "elementwise", "loop", "unsupported"]

INDEX = ir.IntType(64)
# Vectors that a tile of sources is made of.
GROUPS = 4

_DIRECT = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_BOOLEAN = {*_COMPARE, "and", "or", "not"}
_PLAIN = {*_DIRECT, *_BOOLEAN, "neg", "abs", "floor", "sqrt", "rsqrt", "reciprocal", "relu", "sign", "detach", "real"}
_KNOWN = {*_PLAIN, *FUNCTIONS, "maximum", "minimum", "where", "input", "constant", "reshape", "permute", "expand"}
_KNOWN |= {"cat", "slice", "sum", "amax", "linear"}


def unsupported(program: Program) -> set[str]:
    """Primitives of a program that have no vector form."""
    return {value.op for value in program.values} - _KNOWN


@contextmanager
def loop(b: ir.IRBuilder, start: Any, stop: Any, step: int = 1) -> Iterator[Any]:
    """``for i in range(start, stop, step)``: positions the builder in the body, then behind the loop."""
    entry, head = b.block, b.append_basic_block("head")
    body, after = b.append_basic_block("body"), b.append_basic_block("after")
    b.branch(head)
    b.position_at_end(head)
    i = b.phi(INDEX)
    i.add_incoming(start, entry)
    b.cbranch(b.icmp_signed("<", i, stop), body, after)
    b.position_at_end(body)
    yield i
    i.add_incoming(b.add(i, INDEX(step)), b.block)
    b.branch(head)
    b.position_at_end(after)


@dataclass(frozen=True)
class Layout:
    """Where the inputs of a program lie, in elements.

    Attributes:
        offsets: Of each input in the row of its side: query (one row a position), source (a tile of vectors for each
            element), shared.
        widths: Elements of a row by side.
    """

    offsets: dict[int, int]
    widths: tuple[int, int, int]

    @staticmethod
    def of(program: Program) -> Layout:
        """Inputs of each side one behind the other, in order."""
        offsets: dict[int, int] = {}
        widths = [0, 0, 0]
        for item in program.inputs:
            if item.side != PAIR:
                offsets[item.number] = widths[item.side]
                widths[item.side] += math.prod(item.shape)
        return Layout(offsets, (widths[SHARED], widths[QUERY], widths[SOURCE]))


@dataclass
class Frame:
    """Pointers that the loops read and write: float32, at one query and one tile of sources."""

    query: Any
    source: Any
    shared: Any
    scratch: Any


class VectorCode:
    """The loops of one schedule. Values that are stored lie in ``scratch``: an element is ``GROUPS`` vectors."""

    def __init__(self, math_functions: VectorMath, program: Program, plan: Schedule, block: int) -> None:
        self.m, self.program, self.plan, self.block = math_functions, program, plan, block
        self.layout = Layout.of(program)
        self.tile = GROUPS * math_functions.lanes
        self.offsets: dict[int, int] = {}
        self.size = 0
        given = [item.number for item in program.inputs if item.side == PAIR]
        for number in sorted({*plan.stored, *given}):
            self.offsets[number] = self.size
            self.size += program.values[number].size * self.tile

    # -- Memory --------------------------------------------------------------------------------------------------

    def vector(self, b: ir.IRBuilder, base: Any, element: Any, group: int) -> Any:
        """Pointer to a vector of a tile."""
        place = b.add(b.mul(element, INDEX(self.tile)), INDEX(group * self.m.lanes))
        return b.bitcast(b.gep(base, [place]), self.m.vector.as_pointer())

    def load(self, b: ir.IRBuilder, base: Any, element: Any, group: int) -> Any:
        """A vector of a tile."""
        return b.load(self.vector(b, base, element, group), align=4)

    def store(self, b: ir.IRBuilder, value: Any, base: Any, element: Any, group: int) -> None:
        """Store a vector of a tile."""
        b.store(value, self.vector(b, base, element, group), align=4)

    def splat(self, b: ir.IRBuilder, scalar: Any) -> Any:
        """A vector of one number."""
        one = b.insert_element(ir.Constant(self.m.vector, ir.Undefined), scalar, ir.IntType(32)(0))
        zeros = ir.Constant(self.m.integers, [0] * self.m.lanes)
        return b.shuffle_vector(one, ir.Constant(self.m.vector, ir.Undefined), zeros)

    def slot(self, b: ir.IRBuilder, frame: Frame, number: int) -> Any:
        """Pointer to the first vector of a stored value."""
        return b.gep(frame.scratch, [INDEX(self.offsets[self.plan.same[number]])])

    def read(self, b: ir.IRBuilder, frame: Frame, number: int, element: Any, group: int) -> Any:
        """One element of a value that an earlier loop made, or of an input."""
        number = self.plan.same[number]
        value = self.program.values[number]
        if value.op == "constant":
            return self.m.splat(float(value.attrs[0]))  # type: ignore[arg-type]
        if number in self.offsets:
            return self.load(b, self.slot(b, frame, number), element, group)
        side = self.program.sides[number]
        place = b.add(element, INDEX(self.layout.offsets[number]))
        if side == SOURCE:
            return self.load(b, frame.source, place, group)
        return self.splat(b, b.load(b.gep(frame.query if side == QUERY else frame.shared, [place])))

    # -- Loops ---------------------------------------------------------------------------------------------------

    def write(self, b: ir.IRBuilder, frame: Frame, loops: Sequence[Loop]) -> None:
        """All loops of a phase."""
        for item in loops:
            if math.prod(item.shape) == 0:
                continue
            head = None if item.head is None else self.program.values[item.head]
            if head is not None and head.op == "linear":
                self._linear(b, frame, item)
            elif head is not None and head.op == "cat":
                self._cat(b, frame, item)
            else:
                with loop(b, INDEX(0), INDEX(math.prod(item.shape))) as element:
                    made = [self._head(b, frame, item, element, group) for group in range(GROUPS)]
                    for group in range(GROUPS):
                        self._chain(b, frame, item, element, group, made[group])

    def _chain(self, b: ir.IRBuilder, frame: Frame, item: Loop, element: Any, group: int, head: Any) -> None:
        """The elementwise values of a loop at one element."""
        made: dict[int, Any] = {} if item.head is None else {item.head: head}
        for number in item.chain:
            value = self.program.values[number]
            args = []
            for arg in value.args:
                if arg in made and self.program.values[arg].shape == value.shape:
                    args.append(made[arg])
                else:
                    args.append(self._broadcast(b, frame, arg, value.shape, element, group))
            made[number] = elementwise(self.m, b, value.op, args)
        for number, result in made.items():
            if number in self.plan.stored:
                self.store(b, result, self.slot(b, frame, number), element, group)

    def _broadcast(self, b: ir.IRBuilder, frame: Frame, arg: int, shape: Shape, element: Any, group: int) -> Any:
        """The element of an argument that belongs to an element of a value of ``shape``."""
        own = self.program.values[arg].shape
        if math.prod(own) == math.prod(shape):
            return self.read(b, frame, arg, element, group)
        if math.prod(own) == 1:
            return self.read(b, frame, arg, INDEX(0), group)
        index = _split(b, element, shape)[len(shape) - len(own) :]
        kept = [INDEX(0) if n == 1 else i for i, n in zip(index, own, strict=True)]
        return self.read(b, frame, arg, _joined(b, kept, own), group)

    def _head(self, b: ir.IRBuilder, frame: Frame, item: Loop, element: Any, group: int) -> Any:
        """What a loop begins with: a view of another value, a reduction, a power; None where it is a chain only."""
        if item.head is None:
            return None
        value = self.program.values[item.head]
        arg, attrs = value.args[0], value.attrs
        own = self.program.values[arg].shape
        if value.op == "expand":
            return self._broadcast(b, frame, arg, value.shape, element, group)
        if value.op == "permute":
            order: tuple[int, ...] = attrs[0]  # type: ignore[assignment]
            index = _split(b, element, value.shape)
            place = _joined(b, [index[order.index(axis)] for axis in range(len(own))], own)
            return self.read(b, frame, arg, place, group)
        if value.op == "slice":
            axis, start, _, step = (int(attr) for attr in attrs)  # type: ignore[call-overload]
            index = _split(b, element, value.shape)
            index[axis] = b.add(b.mul(index[axis], INDEX(step)), INDEX(start))
            return self.read(b, frame, arg, _joined(b, index, own), group)
        return self._reduction(b, frame, item.head, element, group)

    def _reduction(self, b: ir.IRBuilder, frame: Frame, number: int, element: Any, group: int) -> Any:
        value = self.program.values[number]
        arg = value.args[0]
        own: Shape = self.program.values[arg].shape
        axes: tuple[int, ...] = value.attrs[0]  # type: ignore[assignment]
        kept = [axis for axis in range(len(own)) if axis not in axes]
        outer = dict(zip(kept, _split(b, element, value.shape), strict=True))
        room = self._room(b, self.m.splat(0.0 if value.op == "sum" else -math.inf))
        sizes = tuple(own[axis] for axis in axes)
        with loop(b, INDEX(0), INDEX(math.prod(sizes))) as place:
            inner = dict(zip(axes, _split(b, place, sizes), strict=True))
            index = [outer[axis] if axis in outer else inner[axis] for axis in range(len(own))]
            x = self.read(b, frame, arg, _joined(b, index, own), group)
            total = b.load(room)
            b.store(b.fadd(total, x) if value.op == "sum" else _larger(b, total, x), room)
        return b.load(room)

    def _cat(self, b: ir.IRBuilder, frame: Frame, item: Loop) -> None:
        assert item.head is not None
        value = self.program.values[item.head]
        axis = int(value.attrs[0])  # type: ignore[call-overload]
        start = 0
        for arg in value.args:
            own = self.program.values[arg].shape
            with loop(b, INDEX(0), INDEX(math.prod(own))) as element:
                index = _split(b, element, own)
                index[axis] = b.add(index[axis], INDEX(start))
                place = _joined(b, index, value.shape)
                for group in range(GROUPS):
                    x = self.read(b, frame, arg, element, group)
                    self._chain(b, frame, item, place, group, x)
            start += own[axis]

    def _linear(self, b: ir.IRBuilder, frame: Frame, item: Loop) -> None:
        """x (…, n) by a matrix (m, n): blocks of rows and ``GROUPS`` vectors stay in registers over all columns."""
        assert item.head is not None
        value = self.program.values[item.head]
        x, weight = value.args
        rows, columns = self.program.values[weight].shape
        lead = math.prod(value.shape[:-1])

        def block(front: Any, first: Any, count: int) -> None:
            start = b.mul(front, INDEX(columns))

            def weight_at(row: int, column: Any) -> Any:
                place = b.add(b.mul(b.add(first, INDEX(row)), INDEX(columns)), column)
                return self.read(b, frame, weight, place, 0)

            def x_at(column: Any, group: int) -> Any:
                return self.read(b, frame, x, b.add(start, column), group)

            zero = self.m.splat(0.0)
            sums = self.product(b, count, INDEX(columns), weight_at, x_at, [[zero] * GROUPS for _ in range(count)])
            for row in range(count):
                element = b.add(b.mul(front, INDEX(rows)), b.add(first, INDEX(row)))
                for group in range(GROUPS):
                    self._chain(b, frame, item, element, group, sums[row][group])

        with loop(b, INDEX(0), INDEX(lead)) as front:
            self.blocks(b, rows, lambda first, count: block(front, first, count))

    def blocks(self, b: ir.IRBuilder, rows: int, write: Callable[[Any, int], None]) -> None:
        """``write(first, count)`` for all rows in blocks of ``self.block``, and the rest."""
        whole = rows - rows % self.block
        if whole:
            with loop(b, INDEX(0), INDEX(whole), self.block) as first:
                write(first, self.block)
        if rows % self.block:
            write(INDEX(whole), rows % self.block)

    def product(
        self,
        b: ir.IRBuilder,
        count: int,
        columns: Any,
        left: Callable[[int, Any], Any],
        right: Callable[[Any, int], Any],
        start: Sequence[Sequence[Any]],
    ) -> list[list[Any]]:
        """start + Σ_c left(row, c)·right(c, group) for ``count`` rows and all groups."""
        rooms = [[self._room(b, start[row][group]) for group in range(GROUPS)] for row in range(count)]
        with loop(b, INDEX(0), columns) as column:
            xs = [right(column, group) for group in range(GROUPS)]
            for row in range(count):
                w = left(row, column)
                for group in range(GROUPS):
                    b.store(self.m.fma(b, w, xs[group], b.load(rooms[row][group])), rooms[row][group])
        return [[b.load(room) for room in row] for row in rooms]

    def _room(self, b: ir.IRBuilder, start: Any) -> Any:
        """A variable that holds a vector; it becomes a register."""
        with b.goto_entry_block():
            room = b.alloca(self.m.vector)
        b.store(start, room)
        return room


def elementwise(m: VectorMath, b: ir.IRBuilder, op: str, args: Sequence[Any]) -> Any:
    """One primitive on vectors; truth values are 1 and 0."""
    x = args[0]
    if op in _DIRECT:
        return getattr(b, _DIRECT[op])(*args)
    if op in FUNCTIONS:
        return m.call(b, op, x)
    if op in _COMPARE:
        compare = b.fcmp_unordered if op == "ne" else b.fcmp_ordered
        return b.uitofp(compare(_COMPARE[op], *args), m.vector)
    if op == "where":
        return b.select(b.fcmp_unordered("!=", x, m.splat(0.0)), args[1], args[2])
    if op in ("neg", "detach", "real"):
        return b.fneg(x) if op == "neg" else x
    if op in ("abs", "floor", "sqrt"):
        return m.unary(b, "fabs" if op == "abs" else op, x)
    if op in ("reciprocal", "rsqrt"):
        return b.fdiv(m.splat(1.0), x if op == "reciprocal" else m.unary(b, "sqrt", x))
    if op == "relu":
        return b.select(b.fcmp_ordered("<", x, m.splat(0.0)), m.splat(0.0), x)
    if op in ("maximum", "minimum"):
        return _larger(b, *args) if op == "maximum" else b.fneg(_larger(b, *map(b.fneg, args)))
    if op == "sign":
        one = m.binary(b, "copysign", m.splat(1.0), x)
        return b.select(b.fcmp_ordered("==", x, m.splat(0.0)), m.splat(0.0), one)
    if op == "not":
        return b.fsub(m.splat(1.0), x)
    if op in ("and", "or"):
        return m.binary(b, "minnum" if op == "and" else "maxnum", *args)
    raise ValueError(f"{op} has no vector form")


def _larger(b: ir.IRBuilder, x: Any, y: Any) -> Any:
    """The larger one; NaN if either is."""
    return b.select(b.fcmp_unordered(">", x, y), b.select(b.fcmp_unordered("!=", y, y), y, x), y)


def _split(b: ir.IRBuilder, element: Any, shape: Shape) -> list[Any]:
    """Index along each axis of a flat index."""
    index: list[Any] = []
    for n in reversed(shape):
        index.append(b.urem(element, INDEX(n)))
        element = b.udiv(element, INDEX(n))
    return index[::-1]


def _joined(b: ir.IRBuilder, index: Sequence[Any], shape: Shape) -> Any:
    """Flat index of an index along each axis."""
    element: Any = INDEX(0)
    for i, n in zip(index, shape, strict=True):
        element = b.add(b.mul(element, INDEX(n)), i)
    return element
