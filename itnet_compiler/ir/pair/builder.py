"""Writes programs: one method a primitive, with its shape rule; equal values are one, and idle steps vanish."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .primitives import ELEMENTWISE
from .program import SHARED, Program, Shape, Value

__all__ = ["Builder", "broadcast"]


def broadcast(*shapes: Shape) -> Shape:
    """The shape that all broadcast to, aligned at the last axis as in torch. Raises ``ValueError``."""
    rank = max(map(len, shapes), default=0)
    result = []
    for axis in range(-rank, 0):
        sizes = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
        if len(sizes) > 1:
            raise ValueError(f"shapes {' and '.join(map(str, shapes))} do not broadcast")
        result.append(sizes.pop() if sizes else 1)
    return tuple(result)


class Builder:
    """A program in the making. Methods take and return numbers of values."""

    def __init__(self) -> None:
        self.values: list[Value] = []
        self.sides: list[int] = []
        self._known: dict[Value, int] = {}

    @classmethod
    def of(cls, program: Program) -> Builder:
        """One that holds the values of a program, with their numbers. Raises ``ValueError`` where two are equal."""
        builder = cls()
        for value in program.values:
            builder.emit(value.op, value.args, value.shape, value.attrs)
        if len(builder.values) != len(program.values):
            raise ValueError("a program that is written on holds no value twice")
        return builder

    def program(self, outputs: Sequence[int]) -> Program:
        """What was written so far, with dead values in it."""
        return Program(tuple(self.values), tuple(outputs))

    def shape(self, value: int) -> Shape:
        """Shape of a value for one pair."""
        return self.values[value].shape

    def side(self, value: int) -> int:
        """What a value depends on."""
        return self.sides[value]

    def emit(self, op: str, args: tuple[int, ...], shape: Shape, attrs: tuple[object, ...] = ()) -> int:
        """A value by its parts; the same value again if it is there already."""
        value = Value(op, args, shape, attrs)
        if value not in self._known:
            self._known[value] = len(self.values)
            self.values.append(value)
            side = int(attrs[1]) if op == "input" else SHARED  # type: ignore[call-overload]
            for arg in args:
                side |= self.sides[arg]
            self.sides.append(side)
        return self._known[value]

    def input(self, name: str, side: int, shape: Shape) -> int:
        """An input; names are unique."""
        return self.emit("input", (), shape, (name, side))

    def constant(self, number: float) -> int:
        """A number."""
        return self.emit("constant", (), (), (float(number),))

    def number_of(self, value: int) -> float | None:
        """The number that a value is, if it is a constant."""
        found = self.values[value]
        return float(found.attrs[0]) if found.op == "constant" else None  # type: ignore[arg-type]

    # -- Elementwise ---------------------------------------------------------------------------------------------

    def elementwise(self, op: str, *args: int) -> int:
        """Any elementwise primitive, broadcasting."""
        if len(args) != ELEMENTWISE[op].arity:
            raise ValueError(f"{op} takes {ELEMENTWISE[op].arity} values, not {len(args)}")
        folded = self._folded(op, args)
        if folded is not None:
            return folded
        return self.emit(op, args, broadcast(*map(self.shape, args)))

    def _folded(self, op: str, args: tuple[int, ...]) -> int | None:
        """The value that x·1, x + 0, −(−x) and their kin are."""
        numbers = [self.number_of(arg) for arg in args]
        if op == "neg" and self.values[args[0]].op == "neg":
            return self.values[args[0]].args[0]
        if op in ("add", "mul"):
            idle = 0.0 if op == "add" else 1.0
            for one, other in ((0, 1), (1, 0)):
                if numbers[one] == idle:
                    return args[other]
        if (op == "sub" and numbers[1] == 0.0) or (op == "div" and numbers[1] == 1.0):
            return args[0]
        if None not in numbers and op in ("add", "sub", "mul", "neg"):
            found: list[float] = [number for number in numbers if number is not None]
            results = {"add": sum(found), "mul": math.prod(found), "neg": -found[0], "sub": found[0] - found[-1]}
            return self.constant(results[op])
        return None

    def add(self, a: int, b: int) -> int:
        """a + b."""
        return self.elementwise("add", a, b)

    def sub(self, a: int, b: int) -> int:
        """a − b."""
        return self.elementwise("sub", a, b)

    def mul(self, a: int, b: int) -> int:
        """a·b."""
        return self.elementwise("mul", a, b)

    def div(self, a: int, b: int) -> int:
        """a / b."""
        return self.elementwise("div", a, b)

    def neg(self, a: int) -> int:
        """−a."""
        return self.elementwise("neg", a)

    def where(self, condition: int, a: int, b: int) -> int:
        """a where the condition holds, else b."""
        return self.elementwise("where", condition, a, b)

    def power(self, a: int, exponent: float) -> int:
        """a to a constant power."""
        special = {1.0: lambda: a, -1.0: lambda: self.elementwise("reciprocal", a)}
        special |= {0.5: lambda: self.elementwise("sqrt", a), -0.5: lambda: self.elementwise("rsqrt", a)}
        if exponent in special:
            return special[exponent]()
        if exponent in (2.0, 3.0, 4.0):
            square = self.mul(a, a)
            return square if exponent == 2.0 else self.mul(square, a if exponent == 3.0 else square)
        return self.emit("power", (a,), self.shape(a), (float(exponent),))

    # -- Shapes --------------------------------------------------------------------------------------------------

    def reshape(self, a: int, shape: Shape) -> int:
        """The same elements in another shape."""
        if math.prod(shape) != self.values[a].size:
            raise ValueError(f"{self.shape(a)} cannot be viewed as {shape}")
        while self.values[a].op == "reshape":
            (a,) = self.values[a].args
        return a if self.shape(a) == shape else self.emit("reshape", (a,), shape)

    def permute(self, a: int, order: Sequence[int]) -> int:
        """Axes in another order."""
        order = tuple(axis % len(order) for axis in order)
        if order == tuple(range(len(order))):
            return a
        source = self.values[a]
        if source.op == "permute":
            inner: tuple[int, ...] = source.attrs[0]  # type: ignore[assignment]
            return self.permute(source.args[0], [inner[axis] for axis in order])
        shape = tuple(source.shape[axis] for axis in order)
        moved = [axis for axis in order if source.shape[axis] != 1]
        if moved == sorted(moved):  # no element does
            return self.reshape(a, shape)
        return self.emit("permute", (a,), shape, (order,))

    def transpose(self, a: int) -> int:
        """A matrix with its axes exchanged."""
        return self.permute(a, (1, 0))

    def expand(self, a: int, shape: Shape) -> int:
        """Broadcast to ``shape``."""
        own = self.shape(a)
        if len(own) > len(shape) or any(n not in (1, m) for n, m in zip(own[::-1], shape[::-1], strict=False)):
            raise ValueError(f"{self.shape(a)} cannot be expanded to {shape}")
        return a if self.shape(a) == shape else self.emit("expand", (a,), shape)

    def cat(self, parts: Sequence[int], axis: int) -> int:
        """Values one behind the other along an axis."""
        axis %= len(self.shape(parts[0]))
        if len(parts) == 1:
            return parts[0]
        shape = list(self.shape(parts[0]))
        shape[axis] = sum(self.shape(part)[axis] for part in parts)
        return self.emit("cat", tuple(parts), tuple(shape), (axis,))

    def slice(self, a: int, axis: int, start: int, stop: int, step: int = 1) -> int:
        """Elements start, start + step … before stop along an axis."""
        shape = list(self.shape(a))
        axis %= len(shape)
        if (start, step) == (0, 1) and stop >= shape[axis]:
            return a
        shape[axis] = len(range(start, min(stop, shape[axis]), step))
        return self.emit("slice", (a,), tuple(shape), (axis, start, start + shape[axis] * step, step))

    def sum(self, a: int, axes: Sequence[int], keepdim: bool = False) -> int:
        """Sum over axes."""
        return self._reduce("sum", a, axes, keepdim)

    def amax(self, a: int, axes: Sequence[int], keepdim: bool = False) -> int:
        """Maximum over axes."""
        return self._reduce("amax", a, axes, keepdim)

    def _reduce(self, op: str, a: int, axes: Sequence[int], keepdim: bool) -> int:
        shape = self.shape(a)
        reduced = tuple(sorted({axis % len(shape) for axis in axes})) if shape else ()
        kept = tuple(n for axis, n in enumerate(shape) if axis not in reduced)
        result = a
        if any(shape[axis] != 1 for axis in reduced):
            result = self.emit(op, (a,), kept, (reduced,))
        if keepdim:
            return self.reshape(result, tuple(1 if axis in reduced else n for axis, n in enumerate(shape)))
        return self.reshape(result, kept)

    # -- Products ------------------------------------------------------------------------------------------------

    def linear(self, x: int, weight: int) -> int:
        """x (…, n) times the transpose of a shared matrix (m, n): (…, m)."""
        if self.sides[weight] != SHARED:
            raise ValueError("the matrix of a linear map depends on a position")
        rows, columns = self.shape(weight)
        if self.shape(x)[-1] != columns:
            raise ValueError(f"{self.shape(x)} does not fit a matrix of {rows} × {columns}")
        return self.emit("linear", (x, weight), (*self.shape(x)[:-1], rows))

    def matmul(self, a: int, b: int) -> int:
        """The product of two matrices, (m, n) and (n, k)."""
        if self.sides[b] == SHARED:
            lead, (rows, columns) = self.shape(a)[:-1], self.shape(self.transpose(b))
            flat = self.reshape(a, (columns,)) if lead == (1,) else a
            return self.reshape(self.linear(flat, self.transpose(b)), (*lead, rows))
        if self.sides[a] == SHARED:
            return self.transpose(self.matmul(self.transpose(b), self.transpose(a)))
        (m, n), (_, k) = self.shape(a), self.shape(b)
        product = self.mul(self.reshape(a, (m, 1, n)), self.reshape(self.transpose(b), (1, k, n)))
        return self.sum(product, [-1])
