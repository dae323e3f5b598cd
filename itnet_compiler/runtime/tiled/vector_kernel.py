"""What both kernels of the tiled integral share as LLVM code: arguments, memory, which pairs take part.

Sources lie in tiles: element c of tile t is ``GROUPS`` vectors of neighbouring sources. A row is a query.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

from ...ir.pair.program import Program
from .machine import Written
from .schedule import schedule
from .vector_code import GROUPS, INDEX, Frame, VectorCode, loop
from .vector_math import FLOAT, INT, VectorMath

__all__ = ["NUMBERS", "WIDE", "KernelCode", "Shape"]

_POINTER = FLOAT.as_pointer()
_BYTES = ir.IntType(8).as_pointer()
WIDE = ir.DoubleType()


@dataclass(frozen=True)
class Shape:
    """What a kernel is written for.

    Attributes:
        heads: H.
        width: V.
        normalise: Whether weights are a softmax.
        masked: Whether there is a mask.
        lanes: float32 numbers in a vector.
        block: Rows of a matrix that are multiplied at once.
    """

    heads: int
    width: int
    normalise: bool
    masked: bool
    lanes: int
    block: int


NUMBERS = ("sources", "start", "stop", "before", "after", "mask_stride")


class KernelCode:
    """A kernel in the making: the function ``run``, its arguments, its scratch memory."""

    def __init__(self, program: Program, shape: Shape, pointers: Sequence[str]) -> None:
        self.shape, self.program = shape, program
        self.module = ir.Module("integral")
        types = [
            _BYTES if name == "mask" else WIDE.as_pointer() if name == "grad_shared" else _POINTER for name in pointers
        ]
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [*types, *[INDEX] * len(NUMBERS)]), "run")
        for argument, name in zip(function.args, (*pointers, *NUMBERS), strict=True):
            argument.name = name
            if name in pointers:
                argument.add_attribute("noalias")
        self.given = dict(zip((*pointers, *NUMBERS), function.args, strict=True))
        self.b = ir.IRBuilder(function.append_basic_block("entry"))
        self.m = VectorMath(self.module, shape.lanes)
        self.code = VectorCode(self.m, program, schedule(program), shape.block)
        self.size = self.code.size
        self.channels = shape.heads * shape.width

    def room(self, vectors: int) -> Any:
        """Scratch memory for some vectors."""
        start = self.size
        self.size += vectors * self.shape.lanes
        return self.b.gep(self.given["scratch"], [INDEX(start)])

    def finish(self) -> Written:
        """End the function."""
        self.b.ret_void()
        return Written(str(self.module), self.size)

    def at(self, base: Any, place: Any) -> Any:
        """Pointer to vector number ``place``."""
        address = self.b.gep(base, [self.b.mul(place, INDEX(self.shape.lanes))])
        return self.b.bitcast(address, self.m.vector.as_pointer())

    def get(self, base: Any, place: Any) -> Any:
        """Vector number ``place``."""
        return self.b.load(self.at(base, place), align=4)

    def put(self, value: Any, base: Any, place: Any) -> None:
        """Store vector number ``place``."""
        self.b.store(value, self.at(base, place), align=4)

    def clear(self, base: Any, vectors: int, number: float = 0.0) -> None:
        """Fill vectors with a number."""
        with loop(self.b, INDEX(0), INDEX(vectors)) as place:
            self.put(self.m.splat(number), base, place)

    def total(self, vector: Any) -> Any:
        """Sum of the lanes."""
        add = self.m.intrinsic("vector.reduce.fadd", FLOAT, [FLOAT, self.m.vector])
        return self.b.call(add, [FLOAT(-0.0), vector], fastmath=["reassoc"])

    def bounds(self, first: Any, last: Any) -> tuple[Any, Any]:
        """The sources that the rows from ``first`` to ``last`` (included) may see: (start, stop)."""
        b, given = self.b, self.given
        all_before = b.icmp_signed("<", given["before"], INDEX(0))
        all_after = b.icmp_signed("<", given["after"], INDEX(0))
        low = b.sub(first, given["before"])
        low = b.select(b.icmp_signed("<", low, INDEX(0)), INDEX(0), low)
        high = b.add(b.add(last, given["after"]), INDEX(1))
        high = b.select(b.icmp_signed("<", high, given["sources"]), high, given["sources"])
        return b.select(all_before, INDEX(0), low), b.select(all_after, given["sources"], high)

    def tiles(self, start: Any, stop: Any) -> tuple[Any, Any]:
        """Tiles that hold the sources from ``start`` to ``stop`` (excluded)."""
        b, size = self.b, INDEX(self.code.tile)
        return b.sdiv(start, size), b.sdiv(b.add(stop, INDEX(self.code.tile - 1)), size)

    def frame(self, row: Any, tile: Any) -> Frame:
        """What the program reads at a row and a tile."""
        b, layout = self.b, self.code.layout
        _, query, source = layout.widths
        return Frame(
            b.gep(self.given["query"], [b.mul(row, INDEX(query))]),
            b.gep(self.given["source"], [b.mul(tile, INDEX(source * self.code.tile))]),
            self.given["shared"],
            self.given["scratch"],
        )

    def channel(self, name: str, tile: Any, width: int) -> Any:
        """Pointer to a tile of an array of ``width`` elements a source."""
        return self.b.gep(self.given[name], [self.b.mul(tile, INDEX(width * self.code.tile))])

    def allowed(self, row: Any, tile: Any, start: Any, stop: Any) -> list[Any]:
        """For each vector of a tile: which lanes take part."""
        b, lanes = self.b, self.shape.lanes
        small = ir.VectorType(INT, lanes)
        steps = ir.Constant(small, list(range(lanes)))
        found = []
        for group in range(GROUPS):
            first = b.add(b.mul(tile, INDEX(self.code.tile)), INDEX(group * lanes))
            low = self._lanes(b.trunc(b.sub(start, first), INT))
            high = self._lanes(b.trunc(b.sub(stop, first), INT))
            inside = b.and_(b.icmp_signed(">=", steps, low), b.icmp_signed("<", steps, high))
            if self.shape.masked:
                place = b.add(b.mul(row, self.given["mask_stride"]), first)
                kind = ir.VectorType(ir.IntType(8), lanes)
                bytes_ = b.load(b.bitcast(b.gep(self.given["mask"], [place]), kind.as_pointer()), align=1)
                inside = b.and_(inside, b.icmp_unsigned("!=", bytes_, ir.Constant(kind, [0] * lanes)))
            found.append(inside)
        return found

    def _lanes(self, number: Any) -> Any:
        b = self.b
        vector = ir.VectorType(INT, self.shape.lanes)
        one = b.insert_element(ir.Constant(vector, ir.Undefined), number, INT(0))
        return b.shuffle_vector(one, ir.Constant(vector, ir.Undefined), ir.Constant(vector, [0] * self.shape.lanes))

    def kernel(self, frame: Frame, head: Any) -> list[Any]:
        """The program's number for a head, each vector of the tile."""
        output = self.program.outputs[0]
        element = INDEX(0) if self.program.values[output].size == 1 else head
        return [self.code.read(self.b, frame, output, element, group) for group in range(GROUPS)]

    @contextmanager
    def heads(self) -> Iterator[tuple[Any, Any]]:
        """Loop over (head, its first channel)."""
        with loop(self.b, INDEX(0), INDEX(self.shape.heads)) as head:
            yield head, self.b.mul(head, INDEX(self.shape.width))
