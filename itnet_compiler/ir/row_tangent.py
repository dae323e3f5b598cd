"""Forward differentiation of the step of a row loop: its Jacobian with respect to what is carried.

Two programs are written from a step. ``directional`` is exact: it carries one tangent along, and gives the whole
Jacobian where the tangents are the unit vectors. ``unitwise`` gives of each unit of a carried value the derivative with
respect to the same unit before the step, exact where units meet in elementwise operators and products with matrices
alone; where they meet in sums (of a normalisation) these count as constants. That is the diagonal of quasi-DEER
(arXiv:2407.19115, section 3.2), with a block for each unit where several values of one width are carried.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from torch import Tensor

from .pair.builder import Builder
from .pair.derivatives import DERIVATIVES
from .pair.program import PAIR, SHARED, Program, without_dead_values

__all__ = ["TANGENT", "Carried", "Diagonal", "Unitwise", "directional", "unitwise", "with_diagonals"]

TANGENT = "tangent"

# Input name and output place of each carried value; the program may not read it.
Carried = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Diagonal:
    """An input that holds what a matrix does to each unit by itself.

    Attributes:
        name: Of the input.
        matrix: Name of the matrix (or of the one whose transpose it is).
        transposed: Whether it is the transpose.
        shape: (b, a, n) for a matrix of b·n rows and a·n columns.
    """

    name: str
    matrix: str
    transposed: bool
    shape: tuple[int, int, int]

    def of(self, matrix: Tensor) -> Tensor:
        """D[β, α, i] = W[β·n + i, α·n + i]."""
        matrix = matrix.t() if self.transposed else matrix
        rows, columns, units = self.shape
        return matrix.reshape(rows, units, columns, units).diagonal(dim1=1, dim2=3)


@dataclass(frozen=True)
class Unitwise:
    """Derivatives unit by unit.

    Attributes:
        program: The step; its outputs, then an output for each of ``entries``, of the width of the carried value.
        entries: (i, j): of carried value i with respect to j, for those that may not be zero.
        groups: The carried values in an order in which each group depends on itself and on groups before it.
        diagonals: The inputs that the program has besides those of the step.
    """

    program: Program
    entries: tuple[tuple[int, int], ...]
    groups: tuple[tuple[int, ...], ...]
    diagonals: tuple[Diagonal, ...]


@lru_cache(maxsize=256)
def directional(program: Program, carried: Carried) -> Program:
    """The step with an input ``tangent_0`` … more for each carried value that it reads, of that value's shape.

    Its outputs are those of the step, then the tangents of the carried values after it.
    """
    b = Builder.of(program)
    tangents = _Directional(program, b)
    numbers = {item.name: item.number for item in program.inputs}
    for place, (name, _) in enumerate(carried):
        if name in numbers:
            shape = b.shape(numbers[name])
            tangents.known[numbers[name]] = b.input(f"{TANGENT}_{place}", PAIR, shape)
    tangents.run()
    found = []
    for _, place in carried:
        number = program.outputs[place]
        found.append(tangents.known.get(number, b.expand(b.constant(0.0), b.shape(number))))
    return without_dead_values(b.program([*program.outputs, *found]))


@lru_cache(maxsize=256)
def unitwise(program: Program, carried: Carried) -> Unitwise:
    """The step with its derivatives unit by unit. Carried values meet where they have one width.

    Where one depends on another through matrices alone, and that one on it, the former is left out: it is one entry of
    a row of the matrix, and without it (h and c of an LSTM) the values are solved one after the other, not together.
    """
    b = Builder.of(program)
    diagonals: dict[str, Diagonal] = {}
    entries = _entries(program, carried, b, diagonals)
    groups, dropped = _groups(len(carried), entries.keys(), _entries(program, carried, b, None).keys())
    kept = {pair: number for pair, number in entries.items() if pair not in dropped}
    whole = without_dead_values(b.program([*program.outputs, *kept.values()]))
    used = {item.name for item in whole.inputs}
    return Unitwise(whole, tuple(kept), groups, tuple(one for one in diagonals.values() if one.name in used))


def _entries(
    program: Program, carried: Carried, b: Builder, diagonals: dict[str, Diagonal] | None
) -> dict[tuple[int, int], int]:
    """Derivatives by (of, with respect to); without ``diagonals`` those that go through no matrix."""
    numbers = {item.name: item.number for item in program.inputs}
    widths = [program.values[program.outputs[place]].size for _, place in carried]
    entries: dict[tuple[int, int], int] = {}
    for column, (name, _) in enumerate(carried):
        if name not in numbers:
            continue
        tangents = _Unitwise(program, b, widths[column], diagonals)
        tangents.known[numbers[name]] = b.expand(b.constant(1.0), b.shape(numbers[name]))
        tangents.run()
        for row, (_, place) in enumerate(carried):
            found = tangents.known.get(program.outputs[place])
            if found is not None and widths[row] == widths[column]:
                entries[row, column] = b.reshape(found, (widths[row],))
    return entries


def _groups(
    count: int, entries: Iterable[tuple[int, int]], direct: Collection[tuple[int, int]]
) -> tuple[tuple[tuple[int, ...], ...], set[tuple[int, int]]]:
    """Groups of values that depend on each other, those first that depend on no later one, and entries left out."""
    needs = {row: {row} for row in range(count)}
    dropped = set()
    for row, column in sorted(entries, key=lambda pair: (pair not in direct, pair)):
        if (row, column) not in direct and row in needs[column] and column not in needs[row]:
            dropped.add((row, column))
            continue
        for known in needs.values():
            if row in known:
                known |= needs[column]
    groups = {tuple(other for other in range(count) if other in needs[row] and row in needs[other]) for row in needs}
    return tuple(sorted(groups, key=lambda group: (len(needs[group[0]]), group))), dropped


class _Directional:
    """Tangents of all values, by their numbers; a value that has none does not depend on what is carried."""

    def __init__(self, program: Program, b: Builder) -> None:
        self.program, self.b = program, b
        self.known: dict[int, int] = {}

    def run(self) -> None:
        """Find the tangent of every value that depends on one that has one."""
        for number, value in enumerate(self.program.values):
            if number not in self.known and any(arg in self.known for arg in value.args):
                found = self._push(number)
                if found is not None:
                    self.known[number] = found

    def _push(self, number: int) -> int | None:
        b, value = self.b, self.program.values[number]
        if value.op in DERIVATIVES:
            return self._elementwise(number)
        x, attrs = value.args[0], value.attrs
        if value.op == "cat":
            return self._cat(value.args, int(attrs[0]))  # type: ignore[call-overload]
        if x not in self.known:
            raise ValueError("a matrix depends on what is carried")
        t = self.known[x]
        if value.op == "power":
            exponent = float(attrs[0])  # type: ignore[arg-type]
            return b.mul(t, b.mul(b.constant(exponent), b.power(x, exponent - 1.0)))
        if value.op == "linear":
            return self._linear(t, value.args[1])
        if value.op == "slice":
            return self._slice(t, *(int(attr) for attr in attrs))  # type: ignore[call-overload]
        if value.op == "sum":
            return self._sum(t, attrs[0])  # type: ignore[arg-type]
        if value.op == "amax":
            return self._amax(number, t, attrs[0])  # type: ignore[arg-type]
        if value.op == "reshape":
            return b.reshape(t, value.shape)
        if value.op == "expand":
            return self._expand(t, value.shape)
        if value.op == "permute":
            return self._permute(t, attrs[0])  # type: ignore[arg-type]
        raise ValueError(f"{value.op} has no derivative")

    def _elementwise(self, number: int) -> int | None:
        b, value = self.b, self.program.values[number]
        total: int | None = None
        for place, arg in enumerate(value.args):
            if arg not in self.known:
                continue
            tangent = self._expand(self.known[arg], value.shape)
            part = None if tangent is None else DERIVATIVES[value.op](b, value.args, number, tangent)[place]
            if part is not None:
                total = part if total is None else b.add(total, part)
        return None if total is None else b.expand(total, value.shape)

    def _zeros(self, number: int) -> int:
        return self.b.expand(self.b.constant(0.0), self.b.shape(number))

    def _cat(self, parts: Sequence[int], axis: int) -> int | None:
        return self.b.cat([self.known[part] if part in self.known else self._zeros(part) for part in parts], axis)

    def _linear(self, t: int, weight: int) -> int | None:
        return self.b.linear(t, weight)

    def _slice(self, t: int, axis: int, start: int, stop: int, step: int) -> int | None:
        return self.b.slice(t, axis, start, stop, step)

    def _sum(self, t: int, axes: Sequence[int]) -> int | None:
        return self.b.sum(t, axes)

    def _amax(self, number: int, t: int, axes: Sequence[int]) -> int | None:
        """The mean over the places that hold the maximum."""
        b, x = self.b, self.program.values[number].args[0]
        kept = tuple(1 if axis in axes else size for axis, size in enumerate(b.shape(x)))
        hit = b.elementwise("real", b.elementwise("eq", x, b.reshape(number, kept)))
        return b.div(b.sum(b.mul(t, hit), axes), b.sum(hit, axes))

    def _expand(self, t: int, shape: tuple[int, ...]) -> int | None:
        return self.b.expand(t, shape)

    def _permute(self, t: int, order: Sequence[int]) -> int | None:
        return self.b.permute(t, order)


class _Unitwise(_Directional):
    """Tangents with respect to the same unit: entry e of a value belongs to unit e mod ``units``, or it has none."""

    def __init__(self, program: Program, b: Builder, units: int, diagonals: dict[str, Diagonal] | None) -> None:
        super().__init__(program, b)
        self.units, self.diagonals = units, diagonals

    def _fits(self, *sizes: int) -> bool:
        return self.units > 0 and all(size % self.units == 0 for size in sizes)

    def _cat(self, parts: Sequence[int], axis: int) -> int | None:
        start, found = 0, dict[int, int]()
        for place, part in enumerate(parts):
            shape = self.b.shape(part)
            if part in self.known and len(shape) == 1 and self._fits(start, *shape):
                found[place] = self.known[part]
            start += shape[axis]
        tangents = [found[place] if place in found else self._zeros(part) for place, part in enumerate(parts)]
        return self.b.cat(tangents, axis) if found else None

    def _linear(self, t: int, weight: int) -> int | None:
        b = self.b
        matrix, (rows, columns) = b.values[weight], b.shape(weight)
        transposed = matrix.op == "permute"
        if transposed:
            matrix = b.values[matrix.args[0]]
        if matrix.op != "input" or not self._fits(rows, columns) or b.shape(t) != (columns,):
            return None
        if self.diagonals is None:
            return None
        units = self.units
        shape = rows // units, columns // units, units
        name = f"{matrix.attrs[0]}_{'transposed' if transposed else 'diagonal'}_{units}"
        self.diagonals[name] = Diagonal(name, str(matrix.attrs[0]), transposed, shape)
        wide = b.mul(b.reshape(t, (1, *shape[1:])), b.input(name, SHARED, shape))
        return b.reshape(b.sum(wide, [1]), (rows,))

    def _slice(self, t: int, axis: int, start: int, stop: int, step: int) -> int | None:
        if step != 1 or len(self.b.shape(t)) != 1 or not self._fits(start, stop - start):
            return None
        return self.b.slice(t, axis, start, stop)

    def _sum(self, t: int, axes: Sequence[int]) -> int | None:
        return self.b.sum(t, axes) if self.units == 1 else None

    def _amax(self, number: int, t: int, axes: Sequence[int]) -> int | None:
        return super()._amax(number, t, axes) if self.units == 1 else None

    def _expand(self, t: int, shape: tuple[int, ...]) -> int | None:
        own = self.b.shape(t)
        same = own[len(own) - 1 :] == shape[len(shape) - 1 :] or self.units == 1
        return self.b.expand(t, shape) if same else None

    def _permute(self, t: int, order: Sequence[int]) -> int | None:
        return self.b.permute(t, order) if self.units == 1 else None


def with_diagonals(found: Unitwise, shared: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``shared`` (matrices by name) and the diagonals of them that the program takes besides."""
    return {**shared, **{one.name: one.of(shared[one.matrix]) for one in found.diagonals}}
