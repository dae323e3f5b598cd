"""Reverse differentiation of pair programs: a program that recomputes the values and returns the cotangents."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

from .builder import Builder
from .derivatives import DERIVATIVES
from .program import PAIR, Program, Shape, Value, without_dead_values

__all__ = ["RECORDED", "SEED", "Adjoint", "Product", "adjoint"]

SEED, RECORDED = "cotangent", "recorded"


@dataclass(frozen=True)
class Product:
    """A part of a matrix's cotangent: the sum over all pairs, and over leading axes, of left ⊗ right.

    Attributes:
        matrix: Name of the shared input.
        left: Value (…, m).
        right: Value (…, n).
    """

    matrix: str
    left: int
    right: int


@dataclass(frozen=True)
class Adjoint:
    """What ``adjoint`` finds.

    Attributes:
        program: The program again, then its reverse; one more input for each output, of its shape and of the pair:
            ``cotangent`` where there is one, else ``cotangent_0`` and so on. Its outputs are the forward outputs; the
            cotangents of ``inputs`` for one pair, to be summed over all pairs that share the input; left and right of
            each product.
        inputs: Names of the inputs that a cotangent reaches, other than through ``products``.
        products: Cotangents of the matrices of linear maps.
    """

    program: Program
    inputs: tuple[str, ...]
    products: tuple[Product, ...]


def adjoint(program: Program, wanted: Container[str] | None = None, recorded: Sequence[int] = ()) -> Adjoint:
    """Differentiate a program with respect to the inputs ``wanted`` (None: all of them).

    Values that are ``recorded`` are inputs of the reverse program, ``recorded_0`` and so on, not computed again.
    """
    reverse = _Reverse(program, wanted)
    reverse.run()
    for place, number in enumerate(recorded):
        shape = program.values[number].shape
        reverse.b.values[number] = Value("input", (), shape, (f"{RECORDED}_{place}", PAIR))
    names = tuple(
        item.name for item in program.inputs if item.number in reverse.cotangents and reverse.needed[item.number]
    )
    numbers = {item.name: item.number for item in program.inputs}
    kept = [*program.outputs, *(reverse.cotangents[numbers[name]] for name in names)]
    for product in reverse.products:
        kept += [product.left, product.right]
    return _compact(reverse.b.program(kept), len(program.outputs), names, reverse.products)


def _compact(program: Program, outputs: int, names: tuple[str, ...], products: Sequence[Product]) -> Adjoint:
    lean = without_dead_values(program)
    count = outputs + len(names)
    pairs = lean.outputs[count:]
    found = tuple(
        Product(product.matrix, pairs[2 * place], pairs[2 * place + 1]) for place, product in enumerate(products)
    )
    return Adjoint(lean, names, found)


class _Reverse:
    def __init__(self, program: Program, wanted: Container[str] | None) -> None:
        self.b, self.wanted = Builder.of(program), wanted
        self.needed: list[bool] = []
        self.forward = program
        self.cotangents: dict[int, int] = {}
        self.products: list[Product] = []

    def run(self) -> None:
        self.needed = needed = self._needed()
        outputs = self.forward.outputs
        for place, output in enumerate(outputs):
            name = SEED if len(outputs) == 1 else f"{SEED}_{place}"
            self._add(output, self.b.input(name, PAIR, self.forward.values[output].shape))
        for number in range(len(self.forward.values) - 1, -1, -1):
            value = self.forward.values[number]
            if number in self.cotangents and value.op not in ("input", "constant"):
                for arg, cotangent in zip(value.args, self._pull(number), strict=True):
                    if cotangent is not None and needed[arg]:
                        self._add(arg, cotangent)

    def _needed(self) -> list[bool]:
        """Whether a value depends on a wanted input."""
        found: list[bool] = []
        for value in self.forward.values:
            if value.op == "input":
                found.append(self.wanted is None or value.attrs[0] in self.wanted)
            else:
                found.append(any(found[arg] for arg in value.args))
        return found

    def _add(self, number: int, cotangent: int) -> None:
        cotangent = self._reduced(cotangent, self.b.shape(number))
        before = self.cotangents.get(number)
        self.cotangents[number] = cotangent if before is None else self.b.add(before, cotangent)

    def _reduced(self, cotangent: int, shape: Shape) -> int:
        """Summed over the axes along which a value of ``shape`` was broadcast."""
        found = self.b.shape(cotangent)
        front = len(found) - len(shape)
        axes = [
            *range(front),
            *(front + axis for axis, n in enumerate(shape) if n == 1 and found[front + axis] != 1),
        ]
        if axes:
            cotangent = self.b.sum(cotangent, axes)
        return self.b.reshape(cotangent, shape)

    def _pull(self, number: int) -> list[int | None]:
        """Cotangents of a value's arguments, each of a shape that reduces to the argument's."""
        b, value, g = self.b, self.forward.values[number], self.cotangents[number]
        if value.op in DERIVATIVES:
            return DERIVATIVES[value.op](b, value.args, number, g)
        x = value.args[0]
        shape, attrs = b.shape(x), value.attrs
        if value.op == "linear":
            return self._linear(value.args, g)
        if value.op == "power":
            exponent = float(attrs[0])  # type: ignore[arg-type]
            return [b.mul(g, b.mul(b.constant(exponent), b.power(x, exponent - 1.0)))]
        if value.op == "reshape":
            return [b.reshape(g, shape)]
        if value.op == "expand":
            return [g]
        if value.op == "permute":
            order: tuple[int, ...] = attrs[0]  # type: ignore[assignment]
            return [b.permute(g, [order.index(axis) for axis in range(len(order))])]
        if value.op == "cat":
            return self._cat(value.args, int(attrs[0]), g)  # type: ignore[call-overload]
        if value.op == "slice":
            return [self._slice(shape, g, *(int(attr) for attr in attrs))]  # type: ignore[call-overload]
        if value.op in ("sum", "amax"):
            axes: tuple[int, ...] = attrs[0]  # type: ignore[assignment]
            kept = tuple(1 if axis in axes else n for axis, n in enumerate(shape))
            wide = b.expand(b.reshape(g, kept), shape)
            if value.op == "sum":
                return [wide]
            hit = b.elementwise("real", b.elementwise("eq", x, b.reshape(number, kept)))
            share = b.div(hit, b.sum(hit, axes, keepdim=True))
            return [b.mul(wide, share)]
        raise ValueError(f"{value.op} has no derivative")

    def _linear(self, args: tuple[int, ...], g: int) -> list[int | None]:
        x, weight = args
        b = self.b
        matrix, sides = self.forward.values[weight], (g, x)
        if matrix.op == "permute":
            matrix, sides = self.forward.values[matrix.args[0]], (x, g)
        if matrix.op != "input":
            raise ValueError("the matrix of a linear map is no input")
        if self.needed[weight]:
            self.products.append(Product(str(matrix.attrs[0]), *sides))
        return [b.linear(g, b.transpose(weight)) if self.needed[x] else None, None]

    def _cat(self, parts: tuple[int, ...], axis: int, g: int) -> list[int | None]:
        found: list[int | None] = []
        start = 0
        for part in parts:
            size = self.b.shape(part)[axis]
            found.append(self.b.slice(g, axis, start, start + size))
            start += size
        return found

    def _slice(self, shape: Shape, g: int, axis: int, start: int, stop: int, step: int) -> int:
        """The cotangent with zeros where nothing was taken."""
        b = self.b

        def zeros(size: int) -> int:
            return b.expand(b.constant(0.0), tuple(size if i == axis else n for i, n in enumerate(shape)))

        taken = range(start, min(stop, shape[axis]), step)
        parts: list[int] = []
        place = 0
        for index, source in enumerate(taken):
            if step == 1 and index:
                break
            if source > place:
                parts.append(zeros(source - place))
            width = len(taken) if step == 1 else 1
            parts.append(b.slice(g, axis, index, index + width))
            place = source + width
        if shape[axis] > place:
            parts.append(zeros(shape[axis] - place))
        return b.cat(parts, axis)
