"""Writes a pair program as Triton code over a block of pairs: a value of shape (n,) is a block [queries, sources, n].

Axes of size 1 are dropped, n is padded to a power of two, and a value of one side alone has size 1 along the other.
Padded elements may hold anything: they are cleared before they are summed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ...ir.pair.program import PAIR, QUERY, SHARED, Program, Shape
from .block_products import Products, products

__all__ = ["SMALL", "BlockCode", "elementwise", "literal", "padded", "squeezed", "unsupported"]

# Matrices with a side up to this are multiplied element by element; tensor cores take 16 and more.
SMALL = 4

_UNARY = {
    "neg": "-{0}",
    "abs": "tl.abs({0})",
    "floor": "tl.floor({0})",
    "exp": "tl.exp({0})",
    "log": "tl.log({0})",
    "sqrt": "tl.sqrt({0})",
    "rsqrt": "(1.0 / tl.sqrt({0}))",
    "reciprocal": "(1.0 / {0})",
    "sin": "tl.sin({0})",
    "cos": "tl.cos({0})",
    "tanh": "tanh({0})",
    "sigmoid": "tl.sigmoid({0})",
    "erf": "tl.erf({0})",
    "relu": "tl.where({0} < 0.0, 0.0, {0})",
    "sign": "tl.where({0} > 0.0, 1.0, tl.where({0} < 0.0, -1.0, {0}))",
    "gelu": "gelu({0})",
    "gelu_grad": "gelu_grad({0})",
    "gelu_tanh": "gelu_tanh({0})",
    "gelu_tanh_grad": "gelu_tanh_grad({0})",
    "detach": "{0}",
    "real": "{0}",
    "not": "(1.0 - {0})",
}
_BINARY = {
    "add": "({0} + {1})",
    "sub": "({0} - {1})",
    "mul": "({0} * {1})",
    "div": "({0} / {1})",
    "maximum": "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "minimum": "tl.minimum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)",
    "and": "({0} * {1})",
    "or": "tl.maximum({0}, {1})",
}
_COMPARE = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}
_SHAPES = {"reshape", "expand"}
_LOWEST = 'float("-inf")'
_OTHER = {"input", "constant", "where", "linear", "sum", "amax"}


def literal(number: float) -> str:
    """A number as Triton takes it."""
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def elementwise(op: str, args: Sequence[str]) -> str | None:
    """The expression of an elementwise primitive of these expressions; None where there is none."""
    if op in _COMPARE:
        return f"tl.where({args[0]} {_COMPARE[op]} {args[1]}, 1.0, 0.0)"
    if op == "where":
        return f"tl.where({args[0]} != 0.0, {args[1]}, {args[2]})"
    text = _UNARY.get(op) or _BINARY.get(op)
    return text and text.format(*args)


def squeezed(shape: Shape) -> Shape:
    """Without axes of size 1."""
    return tuple(n for n in shape if n != 1)


def padded(size: int) -> int:
    """Elements that a block holds for ``size``: a power of two, at least 16 where a matrix product needs it."""
    power = 1 << max(0, size - 1).bit_length()
    return max(16, power) if size > SMALL else power


def unsupported(program: Program) -> tuple[str, ...]:
    """Why a program has no block form; nothing if it has one."""
    known = {*_UNARY, *_BINARY, *_COMPARE, *_SHAPES, *_OTHER}
    hidden = products(program).hidden
    shown = [(value, program.sides[n]) for n, value in enumerate(program.values) if n not in hidden]
    reasons = [f"no block form of {op}" for op in sorted({value.op for value, _ in shown} - known)]
    for value, side in shown:
        if side != SHARED and len(squeezed(value.shape)) > 1:
            reasons.append(f"a value of shape {value.shape} for each pair; a block holds one axis")
            break
    for value, _ in shown:
        if value.op == "reshape" and squeezed(value.shape) != squeezed(program.values[value.args[0]].shape):
            reasons.append(f"a view as {value.shape}")
    return tuple(dict.fromkeys(reasons))


@dataclass
class BlockCode:
    """Lines of Triton code for the values of a program.

    Attributes:
        program: No value of rank above 1 but shared ones.
        offsets: Of each input among those of its side.
        widths: Elements of a row of each side (shared, query, source).
        half: Whether matrix products take their factors in the dtype of the values (bfloat16, float16).
    """

    program: Program
    half: bool = False
    offsets: dict[int, int] = field(default_factory=dict)
    widths: list[int] = field(default_factory=lambda: [0, 0, 0])

    @property
    def products(self) -> Products:
        """What is multiplied head by head."""
        return products(self.program)

    def __post_init__(self) -> None:
        for item in self.program.inputs:
            if item.side != PAIR:
                self.offsets[item.number] = self.widths[item.side]
                self.widths[item.side] += math.prod(item.shape)

    def size(self, number: int) -> int:
        """Elements of a value along its axis; 1 where it has none."""
        return math.prod(self.program.values[number].shape)

    def has_axis(self, number: int) -> bool:
        """Whether a value has an axis."""
        return self.size(number) > 1

    # -- Inputs --------------------------------------------------------------------------------------------------

    def loads(self, side: int) -> list[str]:
        """Lines that load the inputs of a side; rows ``i`` or ``j`` with masks ``i_in`` and ``j_in``."""
        lines = []
        for item in self.program.inputs:
            hidden = item.number in self.products.hidden
            if item.side != side or hidden or (side == SHARED and self._is_matrix(item.number)):
                continue
            name, offset, size = f"x{item.number}", self.offsets[item.number], self.size(item.number)
            if side == SHARED:
                lines += self._shared(name, offset, size)
                continue
            row, pointer, place = ("i", "query", "[:, None") if side == QUERY else ("j", "source", "[None, :")
            base = f"{pointer} + {row}_row * {self.widths[side]} + {offset}"
            if size == 1:
                lines.append(f"{name} = tl.load({base}, mask={row}_in, other=0.0){place}]")
            else:
                n = padded(size)
                lines.append(
                    f"{name} = tl.load(({base})[:, None] + tl.arange(0, {n})[None, :], mask={row}_in[:, None] & "
                    f"(tl.arange(0, {n}) < {size})[None, :], other=0.0){place}, :]"
                )
        return lines

    def _shared(self, name: str, offset: int, size: int) -> list[str]:
        if size == 1:
            return [f"{name} = tl.load(shared + {offset})"]
        n = padded(size)
        load = f"tl.load(shared + {offset} + tl.arange(0, {n}), mask=tl.arange(0, {n}) < {size}, other=0.0)"
        return [f"{name} = {load}[None, None, :]"]

    def _is_matrix(self, number: int) -> bool:
        """Whether a shared input is the matrix of a linear map."""
        return any(value.op == "linear" and value.args[1] == number for value in self.program.values)

    def matrix(self, name: str, number: int) -> list[str]:
        """Lines that load W transposed, [n, m], with zeros behind its end."""
        m, n = self.program.values[number].shape
        rows, columns = f"tl.arange(0, {padded(n)})[:, None]", f"tl.arange(0, {padded(m)})[None, :]"
        base = f"shared + {self.offsets[number]} + {columns} * {n} + {rows}"
        inside = f"({rows} < {n}) & ({columns} < {m})"
        return [f"{name} = tl.load({base}, mask={inside}, other=0.0, volatile=True)"]

    # -- Values --------------------------------------------------------------------------------------------------

    def lines(self, numbers: Sequence[int]) -> list[str]:
        """Lines that compute these values, in order."""
        found: list[str] = []
        for number in numbers:
            value = self.program.values[number]
            if value.op == "input" or number in self.products.hidden:
                continue
            if number in self.products.made:
                found += self._head_products(number)
            elif value.op == "linear":
                found += self._linear(number)
            else:
                found.append(f"x{number} = {self._expression(number)}")
        return found

    def _expression(self, number: int) -> str:
        value = self.program.values[number]
        if value.op == "constant":
            return literal(float(value.attrs[0]))  # type: ignore[arg-type]
        if value.op in _SHAPES:
            return self._with_axis(value.args[0], number)
        if value.op in ("sum", "amax"):
            source = value.args[0]
            if not self.has_axis(source):
                return f"x{source}"
            if value.op == "sum":
                return f"tl.sum({self.cleared(source, '0.0')}, 2)"
            return f"tl.max({self.cleared(source, _LOWEST)}, 2)"
        text = elementwise(value.op, [self._with_axis(arg, number) for arg in value.args])
        assert text is not None
        return text

    def _with_axis(self, arg: int, number: int) -> str:
        """An argument as it broadcasts with a value: blocks without axis get one of size 1."""
        if self.has_axis(number) and not self.has_axis(arg) and self.program.sides[arg] != SHARED:
            return f"x{arg}[:, :, None]"
        return f"x{arg}"

    def cleared(self, number: int, fill: str) -> str:
        """A value with its padded elements set to ``fill``."""
        size = self.size(number)
        if padded(size) == size:
            return f"x{number}"
        return f"tl.where((tl.arange(0, {padded(size)}) < {size})[None, None, :], x{number}, {fill})"

    def element(self, number: int, place: str) -> str:
        """One element of a value with an axis: [queries, sources]."""
        n = padded(self.size(number))
        return f"tl.sum(tl.where((tl.arange(0, {n}) == {place})[None, None, :], x{number}, 0.0), 2)"

    def block(self, number: int) -> str:
        """A value as a factor of a matrix product, [queries, sources, n], padded elements cleared."""
        return self._factor(f"{self.cleared(number, '0.0')} + tl.zeros([BQ, BK, 1], tl.float32)")

    def flat(self, number: int) -> str:
        """The same with all pairs along one axis."""
        return f"tl.reshape({self.block(number)}, [BQ * BK, {padded(self.size(number))}])"

    def _factor(self, text: str) -> str:
        return f"({text}).to(value.dtype.element_ty)" if self.half else text

    def head(self, number: int, place: int, width: int) -> str:
        """One head of an input of a side, [rows, width padded for a matrix product]."""
        side = self.program.sides[number]
        row, pointer = ("i", "query") if side == QUERY else ("j", "source")
        base = f"{pointer} + {row}_row * {self.widths[side]} + {self.offsets[number] + place * width}"
        columns = f"tl.arange(0, {max(16, padded(width))})[None, :]"
        return f"tl.load(({base})[:, None] + {columns}, mask={row}_in[:, None] & ({columns} < {width}), other=0.0)"

    def head_dot(self, left: str, right: str) -> str:
        """A product of heads. Numbers of half precision are TF32 numbers too, and their products keep more digits."""
        return f"tl.dot({left}, {right}, input_precision={repr('tf32') if self.half else 'PRECISION'})"

    def number_of_head(self, number: int, head: int) -> str:
        """The number for a head, for each pair: [queries, sources]."""
        one = self.element(number, str(head)) if self.has_axis(number) else f"x{number}"
        return f"{one} + tl.zeros([BQ, BK], tl.float32)"

    def _head_products(self, number: int) -> list[str]:
        found, name = self.products.made[number], f"x{number}"
        lines = []
        for place in range(found.heads):
            left, right = (self.head(factor, place, found.width) for factor in (found.left, found.right))
            product = self.head_dot(left, f"tl.trans({right})")
            if found.heads == 1:
                return [f"{name} = {product}"]
            at = f"(tl.arange(0, {padded(found.heads)}) == {place})[None, None, :]"
            lines.append(f"{name} = tl.where({at}, ({product})[:, :, None], {name if place else '0.0'})")
        return lines

    def _linear(self, number: int) -> list[str]:
        x, weight = self.program.values[number].args
        m, n = self.program.values[weight].shape
        name = f"x{number}"
        base = f"shared + {self.offsets[weight]}"
        if n == 1 or m == 1:
            lines = self._shared("weight", self.offsets[weight], m * n)
            if n == 1 and m > 1:
                return [*lines, f"{name} = x{x}[:, :, None] * weight"]
            if n == 1:
                return [*lines, f"{name} = x{x} * weight"]
            return [*lines, f"{name} = tl.sum({self.cleared(x, '0.0')} * weight, 2)"]
        if n <= SMALL:
            column = f"{base} + tl.arange(0, {padded(m)}) * {n}"
            inside = f"mask=tl.arange(0, {padded(m)}) < {m}, other=0.0, volatile=True"
            terms = [
                f"{self.element(x, str(c))}[:, :, None] * tl.load({column} + {c}, {inside})[None, None, :]"
                for c in range(n)
            ]
            return [f"{name} = {terms[0]}", *(f"{name} += {term}" for term in terms[1:])]
        if m <= SMALL:
            row = f"{base} + tl.arange(0, {padded(n)})"
            inside = f"mask=tl.arange(0, {padded(n)}) < {n}, other=0.0, volatile=True"
            lines = [f"clear = {self.cleared(x, '0.0')}"]
            place = f"tl.arange(0, {padded(m)})[None, None, :]"
            for r in range(m):
                lines.append(f"row = tl.sum(clear * tl.load({row} + {r * n}, {inside})[None, None, :], 2)")
                rest = "0.0" if r == 0 else name
                lines.append(f"{name} = tl.where({place} == {r}, row[:, :, None], {rest})")
            return lines
        product = f"tl.dot({self.flat(x)}, {self._factor('weight')}, input_precision=PRECISION)"
        return [*self.matrix("weight", weight), f"{name} = tl.reshape({product}, [BQ, BK, {padded(m)}])"]
