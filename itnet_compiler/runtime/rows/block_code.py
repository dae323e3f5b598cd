"""Writes a row loop as one Triton kernel: a program takes some rows through all steps.

A value is a block for each of its segments, [ROWS, n] with n padded to a power of two, or [ROWS, 1] and [1, n] where it
is the same along a row or for all rows. What is multiplied by a matrix, and the product, have a place in memory, in a
room of the program's own that stays in the cache: the product is made tile by tile.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ...ir.pair.program import Program
from ..tiled.block_code import elementwise, literal
from .problem import CHUNK
from .segments import Segment, segments

__all__ = ["COLUMNS", "DEPTH", "RowCode", "Streams", "padded"]

# Largest tile of a matrix: columns of the product, and entries that are summed.
COLUMNS, DEPTH = 32, 32


def padded(size: int) -> int:
    """Elements of the block that holds ``size``: a power of two."""
    return 1 << max(0, size - 1).bit_length()


@dataclass(frozen=True)
class Streams:
    """A program, and where its inputs come from and its outputs go.

    Attributes:
        program: One step.
        carried: Input number (−1 where it is not read) and output place of each carried value.
        widths: Of the carried values.
        read: Input numbers that are read at every step.
        shared: Input numbers of what all rows share.
        written: Output places that are written at every step.
        keep: Whether the states before every ``CHUNK`` steps are kept.
        backwards: Whether the last step is the first.
    """

    program: Program
    carried: tuple[tuple[int, int], ...]
    widths: tuple[int, ...]
    read: tuple[int, ...]
    shared: tuple[int, ...]
    written: tuple[int, ...]
    keep: bool
    backwards: bool


@dataclass(frozen=True)
class _Place:
    """Where a value lies: the address of its first entry, one for each row or, where all share it, one."""

    address: str
    own: bool = False
    shared: bool = False


@dataclass
class RowCode:
    """Lines of the kernel for one loop.

    Attributes:
        streams: What is written.
        room: Numbers that a row has in memory of the program's own.
    """

    streams: Streams
    room: int = 0
    _lines: list[str] = field(default_factory=list)
    _places: dict[int, _Place] = field(default_factory=dict)
    _blocks: dict[tuple[int, int], str] = field(default_factory=dict)
    _loaded: list[tuple[int, int]] = field(default_factory=list)
    _stale: bool = False

    def __post_init__(self) -> None:
        self._segments = segments(self.program, self.streams.carried)
        self._carried: list[tuple[Segment, ...]] = []
        for (number, place), width in zip(self.streams.carried, self.streams.widths, strict=True):
            number = self.program.outputs[place] if number < 0 else number
            whole: tuple[Segment, ...] = ((0, width),)
            self._carried.append(self._segments[number] if self.program.values[number].size == width else whole)

    @property
    def program(self) -> Program:
        """One step."""
        return self.streams.program

    def text(self) -> str:
        """The kernel ``steps``."""
        self._step()
        before, after = [], []
        for place, parts in enumerate(self._carried):
            for part in parts:
                cells, mask = self._cells(f"row * {self.streams.widths[place]}", part)
                name = f"h{place}_{part[0]}"
                before.append(f"    {name} = tl.load(first{place} + {cells}, mask={mask}, other=0.0)")
                after.append(f"    tl.store(last{place} + {cells}, {name}, mask={mask})")
        position = "length - 1 - step" if self.streams.backwards else "step"
        lines = [
            "@triton.jit",
            f"def steps({', '.join(self.arguments)}, ROWS: tl.constexpr, PRECISION: tl.constexpr):",
            "    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)",
            "    inside = row < rows",
            *before,
            "    for step in range(length):",
            f"        place = tl.cast({position}, tl.int64)",
            # A room for even steps and one for odd ones: what may still be read is not written over.
            f"        room = scratch + (row * 2 + step % 2) * {self.room}",
            *(f"        {line}" for line in self._lines),
            *after,
        ]
        return "\n".join(lines) + "\n"

    @property
    def arguments(self) -> list[str]:
        """Names of the kernel's arguments: pointers, and distances of steps and rows in numbers."""
        carried = range(len(self.streams.carried))
        names = [f"x{number}{part}" for number in self.streams.read for part in ("", "_step", "_row")]
        names += [f"w{number}" for number in self.streams.shared]
        names += [f"y{place}{part}" for place in self.streams.written for part in ("", "_step", "_row")]
        names += [f"{what}{place}" for what in ("first", "last") for place in carried]
        names += [f"kept{place}" for place in carried if self.streams.keep]
        return [*names, "scratch", "rows", "length"]

    # ---- one step

    def _step(self) -> None:
        streams = self.streams
        for place, (number, _) in enumerate(streams.carried):
            if number >= 0:
                self._blocks |= {(number, start): f"h{place}_{start}" for start, _ in self._carried[place]}
        if streams.keep:
            self._keep()
        for number in streams.read:
            self._lines.append(f"a{number} = x{number} + place * x{number}_step + row * x{number}_row")
            self._places[number] = _Place(f"a{number}")
        self._places |= {number: _Place(f"w{number}", shared=True) for number in streams.shared}
        for number in range(len(self.program.values)):
            self._value(number)
        for place in streams.written:
            number = self.program.outputs[place]
            self._store(number, f"y{place} + place * y{place}_step + row * y{place}_row")
        after = []
        for place, parts in enumerate(self._carried):
            number = self.program.outputs[streams.carried[place][1]]
            single = self.program.values[number].size == 1
            for start, stop in parts:
                block = self._block(number, (0, 1) if single else (start, stop))
                name = f"{place}_{start}"
                self._lines.append(f"next{name} = tl.broadcast_to({block}, [ROWS, {padded(stop - start)}])")
                after.append(f"h{name} = next{name}")
        self._lines += after

    def _keep(self) -> None:
        """Before every ``CHUNK`` steps the states are kept."""
        self._lines.append(f"if step % {CHUNK} == 0:")
        for place, width in enumerate(self.streams.widths):
            for part in self._carried[place]:
                cells, mask = self._cells(f"(tl.cast(step // {CHUNK}, tl.int64) * rows + row) * {width}", part)
                self._lines.append(f"    tl.store(kept{place} + {cells}, h{place}_{part[0]}, mask={mask})")

    def _value(self, number: int) -> None:
        value = self.program.values[number]
        if value.op in ("input", "permute", "slice", "cat", "reshape", "expand"):
            return
        if value.op == "constant":
            filled = literal(float(value.attrs[0]))  # type: ignore[arg-type]
            self._lines.append(f"v{number}_0 = tl.full([1, 1], {filled}, tl.float32)")
            self._blocks[number, 0] = f"v{number}_0"
        elif value.op == "linear":
            self._linear(number)
        elif value.op in ("sum", "amax"):
            self._lines += self._reduced(number)
            self._blocks[number, 0] = f"v{number}_0"
        else:
            for part in self._segments[number]:
                args = [self._block(arg, (0, 1) if self._size(arg) == 1 else part) for arg in value.args]
                name, text = f"v{number}_{part[0]}", elementwise(value.op, args)
                assert text is not None, value.op
                self._lines.append(f"{name} = {text}")
                self._blocks[number, part[0]] = name

    def _reduced(self, number: int) -> list[str]:
        value, name = self.program.values[number], f"v{number}_0"
        fill, function, both = ("0.0", "tl.sum", "{0} + {1}")
        if value.op == "amax":
            fill, function, both = 'float("-inf")', "tl.max", "tl.maximum({0}, {1}, propagate_nan=tl.PropagateNan.ALL)"
        lines: list[str] = []
        for start, stop in self._segments[value.args[0]]:
            block, columns = self._block(value.args[0], (start, stop)), self._columns((0, stop - start))
            part = f"{function}(tl.where({columns} < {stop - start}, {block}, {fill}), 1)[:, None]"
            lines.append(f"{name} = {both.format(name, part) if lines else part}")
        return lines

    def _linear(self, number: int) -> None:
        """A tile of columns after the other, summed over tiles of the row that is multiplied."""
        source, weight = self.program.values[number].args
        count, size = self.program.values[weight].shape
        base, transposed = self._matrix(weight)
        down, across = (1, count) if transposed else (size, 1)
        given, own = self._placed(source), self._new(number)
        self._settle(given)
        wide, deep = min(COLUMNS, max(16, padded(count))), min(DEPTH, max(16, padded(size)))
        left, rows = (f"({given.address})[:, None]", "inside[:, None] & ")
        if given.shared:
            left, rows = given.address, ""
        hint = ", volatile=True" if given.own else ""
        self._lines += [
            f"for corner in range(0, {count}, {wide}):",
            f"    column = (corner + tl.arange(0, {wide}))[None, :]",
            f"    total = tl.zeros([ROWS, {wide}], tl.float32)",
            f"    for top in range(0, {size}, {deep}):",
            f"        entry = top + tl.arange(0, {deep})",
            f"        part = tl.load({left} + entry[None, :], mask={rows}(entry < {size})[None, :], other=0.0{hint})",
            *([f"        part = tl.broadcast_to(part, [ROWS, {deep}])"] if given.shared else []),
            f"        tile = tl.load({base} + entry[:, None] * {across} + column * {down}, "
            f"mask=(entry < {size})[:, None] & (column < {count}), other=0.0)",
            "        total = tl.dot(part, tile, total, input_precision=PRECISION)",
            f"    tl.store(({own.address})[:, None] + column, total, mask=column < {count})",
        ]
        self._stale = True
        # Registers are short in the product: what lies in memory is read again after it.
        for key in self._loaded:
            del self._blocks[key]
        self._loaded.clear()

    def _matrix(self, number: int) -> tuple[str, bool]:
        """Name of a matrix in memory, and whether it is read transposed."""
        value = self.program.values[number]
        if value.op == "input":
            return f"w{number}", False
        base, transposed = self._matrix(value.args[0])
        return base, transposed != (tuple(value.attrs[0]) == (1, 0))  # type: ignore[arg-type]

    # ---- blocks and places

    def _size(self, number: int) -> int:
        return self.program.values[number].size

    def _block(self, number: int, part: Segment) -> str:
        """The name of a segment of a value as a block."""
        key = number, part[0]
        if key in self._blocks:
            return self._blocks[key]
        value = self.program.values[number]
        if value.op == "slice":
            start = int(value.attrs[1])  # type: ignore[call-overload]
            return self._block(value.args[0], (part[0] + start, part[1] + start))
        if value.op == "cat":
            start = 0
            for arg in value.args:
                if part[0] < start + self._size(arg):
                    return self._block(arg, (part[0] - start, part[1] - start))
                start += self._size(arg)
        if value.op in ("reshape", "expand"):
            return self._block(value.args[0], part if self._size(value.args[0]) == value.size else (0, 1))
        place = self._places[number]
        self._settle(place)
        cells, mask = self._cells(place.address, part, shared=place.shared)
        hint = ", volatile=True" if place.own else ""
        name = self._blocks[key] = f"v{number}_{part[0]}"
        self._lines.append(f"{name} = tl.load({cells}, mask={mask}, other=0.0{hint})")
        self._loaded.append(key)
        return name

    def _placed(self, number: int) -> _Place:
        """Where a value lies in memory; it is put there if it does not."""
        value = self.program.values[number]
        if number not in self._places and value.op == "slice" and value.args[0] in self._places:
            found, start = self._places[value.args[0]], value.attrs[1]
            return _Place(f"({found.address} + {start})", found.own, found.shared)
        if number not in self._places:
            own = self._new(number)
            self._store(number, own.address)
            self._stale = True
        return self._places[number]

    def _new(self, number: int) -> _Place:
        place = _Place(f"(room + {self.room})", own=True)
        self.room += self._size(number)
        self._places[number] = place
        return place

    def _store(self, number: int, address: str) -> None:
        for part in self._segments[number]:
            block = self._block(number, part)
            cells, mask = self._cells(address, part)
            self._lines.append(f"tl.store({cells}, {block}, mask={mask})")

    def _settle(self, place: _Place) -> None:
        """Before what this program has written is read, all its threads must have written it."""
        if place.own and self._stale:
            self._lines.append("tl.debug_barrier()")
            self._stale = False

    @staticmethod
    def _columns(part: Segment) -> str:
        start, stop = part
        return f"({f'{start} + ' if start else ''}tl.arange(0, {padded(stop - start)}))[None, :]"

    def _cells(self, start: str, part: Segment, *, shared: bool = False) -> tuple[str, str]:
        """Places of a segment of rows that begin at ``start``, and its mask."""
        columns, masks = self._columns(part), [] if shared else ["inside[:, None]"]
        if padded(part[1] - part[0]) != part[1] - part[0] or shared:
            masks.append(f"({columns} < {part[1]})")
        return f"{start} + {columns}" if shared else f"({start})[:, None] + {columns}", " & ".join(masks)
