"""Writes the steps of a row program as LLVM code: vectors along the row, a few rows at a time.

    for rows in blocks of R:
        carried = initial
        for step in steps:
            if step % every == 0: kept[step / every] = carried
            values of the program, group by group
            streams out; carried = the program's carried values
        last = carried

A product with a matrix keeps R × V vectors of sums in registers and reads the matrix once for R rows. The last block
may overlap itself: rows beyond the end are the last row again, whose results are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from ..tiled.machine import Written, lanes
from ..tiled.vector_code import INDEX, elementwise, loop
from ..tiled.vector_math import FLOAT, VectorMath
from .places import Place, plan
from .steps import Steps

__all__ = ["ARGUMENTS", "FIELDS", "panel", "write"]

# Arguments of ``run``: address of the table, first row, row behind the last one, number of steps, steps between kept
# states, address of room for one call.
ARGUMENTS = 6
# Fields of the table for each stream: address, and distances of steps and of rows in numbers.
FIELDS = 3


def panel(width: int, rows: int) -> int:
    """Vectors of a product's result that are summed at once: as many as registers allow, with the least waste."""
    sums = 24 if lanes() == 16 else 12
    vectors, most = math.ceil(width / lanes()), max(1, min(6, sums // rows))
    return min(range(1, most + 1), key=lambda count: (math.ceil(vectors / count) * count, -count))


def write(steps: Steps) -> Written:
    """The LLVM code."""
    return _Writer(steps).write()


class _Writer:
    def __init__(self, steps: Steps) -> None:
        self.steps, self.program = steps, steps.program
        self.module = ir.Module("rows")
        self.m = VectorMath(self.module, lanes())
        self.plan = plan(self.program)
        self.rooms: dict[int, int] = {}
        self.starts: dict[int, list[Any]] = {}
        self.size = 0
        self.direct = {number for number in steps.streams if self._is_direct(number)}
        for number in sorted(self.plan.stored - set(steps.shared) - self.direct):
            self.rooms[number] = self._room(self.program.values[number].size)
        self.carry = [
            self.rooms[number] if number >= 0 else self._room(width)
            for (number, _), width in zip(steps.carried, steps.widths, strict=True)
        ]
        self.spare = [self._room(width) for width in steps.widths]

    def _is_direct(self, number: int) -> bool:
        """Whether an input is read where it lies: in whole vectors alone, none of which reaches beyond its end."""
        values, size, width = self.program.values, self.m.lanes, self.program.values[number].size
        own = {one for one, place in self.plan.places.items() if place.base == number}
        for one in own:
            if self.plan.places[one].offset + math.ceil(values[one].size / size) * size > width:
                return False
        single = ("linear", "slice")
        return not any(
            value.op in single and value.args[0] in own and place not in own for place, value in enumerate(values)
        )

    def _room(self, width: int) -> int:
        """Place of a value of so many entries for each row; a vector more than it needs, since parts are read whole."""
        place = self.size
        self.size += self.steps.rows * self._pitch(width)
        return place

    def _pitch(self, width: int) -> int:
        return (math.ceil(width / self.m.lanes) + 1) * self.m.lanes

    # ---- the frame

    def write(self) -> Written:
        """The function."""
        function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [INDEX] * ARGUMENTS), "run")
        self.b = b = ir.IRBuilder(function.append_basic_block())
        table, first, stop, steps, every, room = function.args
        self.table = b.inttoptr(table, INDEX.as_pointer())
        self.room = b.inttoptr(room, FLOAT.as_pointer())
        steps_of = self.steps
        count = len(steps_of.streams) + len(steps_of.shared)
        self.shared = {
            number: self._entry(len(steps_of.streams) + place)[0] for place, number in enumerate(steps_of.shared)
        }
        inputs = [self._entry(place) for place in range(len(steps_of.streams))]
        outputs = [self._entry(count + place) for place in range(len(steps_of.written))]
        count += len(outputs)
        states = [[self._entry(count + 3 * place + i) for i in range(3)] for place in range(len(steps_of.carried))]
        with loop(b, first, stop, steps_of.rows) as row:
            last = b.sub(stop, INDEX(1))
            self.row = []
            for place in range(steps_of.rows):
                index = b.add(row, INDEX(place))
                self.row.append(b.select(b.icmp_signed("<", index, last), index, last))
            for place, (initial, _, _) in enumerate(states):
                self._take(initial, INDEX(0), self.carry[place], steps_of.widths[place])
            with loop(b, INDEX(0), steps) as step:
                self._keep(states, step, every)
                for number, stream in zip(steps_of.streams, inputs, strict=True):
                    if number in self.direct:
                        self.starts[number] = [self._start(stream, step, row) for row in range(steps_of.rows)]
                    else:
                        self._take(stream, step, self.rooms[number], self.program.values[number].size)
                for group in self.plan.groups:
                    if group.elementwise:
                        self._chain(group.values, group.size)
                    else:
                        self._single(group.values[0])
                for place, stream in zip(steps_of.written, outputs, strict=True):
                    self._give(stream, step, self.program.outputs[place])
                self._carry_on()
            for place, (_, final, _) in enumerate(states):
                self._put(final, INDEX(0), self.carry[place], steps_of.widths[place])
        b.ret_void()
        return Written(str(self.module), max(1, self.size))

    def _entry(self, place: int) -> tuple[Any, Any, Any]:
        """Address, distance of steps, distance of rows."""
        numbers = [self.b.load(self.b.gep(self.table, [INDEX(FIELDS * place + i)])) for i in range(FIELDS)]
        return self.b.inttoptr(numbers[0], FLOAT.as_pointer()), numbers[1], numbers[2]

    def _keep(self, states: Sequence[Sequence[tuple[Any, Any, Any]]], step: Any, every: Any) -> None:
        b = self.b
        for place, (_, _, kept) in enumerate(states):
            there = b.icmp_unsigned("!=", b.ptrtoint(kept[0], INDEX), INDEX(0))
            due = b.icmp_signed("==", b.srem(step, every), INDEX(0))
            with b.if_then(b.and_(there, due)):
                self._put(kept, b.sdiv(step, every), self.carry[place], self.steps.widths[place])

    def _carry_on(self) -> None:
        """All new values are read before the first old one is overwritten."""
        moved = []
        for place, (_, output) in enumerate(self.steps.carried):
            width, source = self.steps.widths[place], self.program.outputs[output]
            if self._number_of(source) is None and self._place(source).base in self.rooms:
                own = self.program.values[self._place(source).base].op == "input"
            else:
                own = False
            if own:
                self._copy(source, self.spare[place], width)
                moved.append((place, self.spare[place]))
            else:
                moved.append((place, -1))
        for place, spare in moved:
            width = self.steps.widths[place]
            if spare < 0:
                self._copy(self.program.outputs[self.steps.carried[place][1]], self.carry[place], width)
            else:
                for row, i in self._vectors(width):
                    self._store(self.b.load(self._at(spare, row, width, i), align=4), self.carry[place], row, width, i)

    # ---- memory

    def _vectors(self, width: int) -> Any:
        """(row, place of a vector) for all vectors of a value, row after row: one after the other in memory."""
        whole = math.ceil(width / self.m.lanes) * self.m.lanes
        for row in range(self.steps.rows):
            with loop(self.b, INDEX(0), INDEX(whole), self.m.lanes) as i:
                yield row, i

    def _at(self, room: int, row: int, width: int, i: Any) -> Any:
        """Pointer to a vector in the room of a value of ``width`` entries."""
        place = self.b.add(i, INDEX(room + row * self._pitch(width)))
        return self.b.bitcast(self.b.gep(self.room, [place]), self.m.vector.as_pointer())

    def _store(self, vector: Any, room: int, row: int, width: int, i: Any) -> None:
        self.b.store(vector, self._at(room, row, width, i), align=4)

    def _start(self, stream: tuple[Any, Any, Any], step: Any, row: int) -> Any:
        address, by_step, by_row = stream
        b = self.b
        return b.gep(address, [b.add(b.mul(step, by_step), b.mul(self.row[row], by_row))])

    def _take(self, stream: tuple[Any, Any, Any], step: Any, room: int, width: int) -> None:
        """Copy one step of a stream into its room."""
        b, size = self.b, self.m.lanes
        whole = width // size * size
        for row in range(self.steps.rows):
            source = self._start(stream, step, row)
            if width == 1:
                self._store(self._splat(b.load(source)), room, row, 1, INDEX(0))
                continue
            if whole:
                with loop(b, INDEX(0), INDEX(whole), size) as i:
                    pointer = b.bitcast(b.gep(source, [i]), self.m.vector.as_pointer())
                    self._store(b.load(pointer, align=4), room, row, width, i)
            for i in range(whole, width):
                target = b.gep(self.room, [INDEX(room + row * self._pitch(width) + i)])
                b.store(b.load(b.gep(source, [INDEX(i)])), target)

    def _put(self, stream: tuple[Any, Any, Any], step: Any, room: int, width: int) -> None:
        """Copy a room into one step of a stream."""
        for row in range(self.steps.rows):
            self._out(stream, step, row, width, lambda i, row=row: self.b.load(self._at(room, row, width, i), align=4))

    def _give(self, stream: tuple[Any, Any, Any], step: Any, number: int) -> None:
        """Copy a value into one step of a stream."""
        width = self.program.values[number].size
        for row in range(self.steps.rows):
            self._out(stream, step, row, width, lambda i, row=row: self._read(number, row, i, width))

    def _out(self, stream: tuple[Any, Any, Any], step: Any, row: int, width: int, vector: Any) -> None:
        b, size = self.b, self.m.lanes
        target, whole = self._start(stream, step, row), width // size * size
        if whole:
            with loop(b, INDEX(0), INDEX(whole), size) as i:
                b.store(vector(i), b.bitcast(b.gep(target, [i]), self.m.vector.as_pointer()), align=4)
        if whole < width:
            rest = vector(INDEX(whole))
            for lane in range(width - whole):
                number = b.extract_element(rest, ir.IntType(32)(lane))
                b.store(number, b.gep(target, [INDEX(whole + lane)]))

    def _copy(self, number: int, room: int, width: int) -> None:
        for row, i in self._vectors(width):
            self._store(self._read(number, row, i, width), room, row, width, i)

    def _splat(self, scalar: Any) -> Any:
        b = self.b
        one = b.insert_element(ir.Constant(self.m.vector, ir.Undefined), scalar, ir.IntType(32)(0))
        zeros = ir.Constant(self.m.integers, [0] * self.m.lanes)
        return b.shuffle_vector(one, ir.Constant(self.m.vector, ir.Undefined), zeros)

    # ---- values

    def _number_of(self, number: int) -> float | None:
        value = self.program.values[number]
        return float(value.attrs[0]) if value.op == "constant" else None  # type: ignore[arg-type]

    def _place(self, number: int) -> Place:
        return self.plan.places[number]

    def _read(self, number: int, row: int, i: Any, width: int) -> Any:
        """A vector of a value that an earlier group made, of an input or a constant, for a result of ``width``."""
        constant = self._number_of(number)
        if constant is not None:
            return self.m.splat(constant)
        b, value, place = self.b, self.program.values[number], self._place(number)
        i = INDEX(0) if value.size == 1 and width != 1 else i
        if place.base in self.shared:
            at = b.gep(self.shared[place.base], [b.add(i, INDEX(place.offset))])
            if value.size == 1:
                return self._splat(b.load(at))
            return b.load(b.bitcast(at, self.m.vector.as_pointer()), align=4)
        if place.base in self.direct:
            at = b.gep(self.starts[place.base][row], [b.add(i, INDEX(place.offset))])
            return b.load(b.bitcast(at, self.m.vector.as_pointer()), align=4)
        base = self.program.values[place.base].size
        return b.load(self._at(self.rooms[place.base], row, base, b.add(i, INDEX(place.offset))), align=4)

    def _chain(self, numbers: Sequence[int], size: int) -> None:
        """Elementwise values in one loop."""
        for row, i in self._vectors(size):
            made: dict[int, Any] = {}
            for number in numbers:
                value = self.program.values[number]
                args = [made[arg] if arg in made else self._read(arg, row, i, size) for arg in value.args]
                made[number] = elementwise(self.m, self.b, value.op, args)
                if number in self.rooms:
                    self._store(made[number], self.rooms[number], row, size, i)

    def _single(self, number: int) -> None:
        value = self.program.values[number]
        width, room = value.size, self.rooms[number]
        if value.op == "linear":
            self._product(number)
        elif value.op in ("sum", "amax"):
            self._reduction(number)
        elif value.op == "cat":
            self._joined(number)
        elif value.op == "slice" and width == 1:
            self._entry_of(number)
        else:  # an expansion, or a view of a value that lies in all lanes
            for row, i in self._vectors(width):
                self._store(self._read(value.args[0], row, i, width), room, row, width, i)

    def _entry_of(self, number: int) -> None:
        """One entry of a value, in all lanes."""
        value = self.program.values[number]
        start = int(value.attrs[1])  # type: ignore[call-overload]
        for row in range(self.steps.rows):
            vector = self._read(value.args[0], row, INDEX(start), self.program.values[value.args[0]].size)
            first = self.b.extract_element(vector, ir.IntType(32)(0))
            self._store(self._splat(first), self.rooms[number], row, 1, INDEX(0))

    def _joined(self, number: int) -> None:
        """Parts in order: what a part writes beyond its end, the next one overwrites."""
        value, start = self.program.values[number], 0
        for part in value.args:
            size = self.program.values[part].size
            for row, i in self._vectors(size):
                vector = self._read(part, row, i, size)
                self._store(vector, self.rooms[number], row, value.size, self.b.add(i, INDEX(start)))
            start += size

    def _reduction(self, number: int) -> None:
        """Sum or maximum over a row, in all lanes."""
        b, value, m = self.b, self.program.values[number], self.m
        arg = value.args[0]
        width = self.program.values[arg].size
        op = "add" if value.op == "sum" else "maximum"
        idle = m.splat(0.0 if value.op == "sum" else -math.inf)
        lane = ir.Constant(m.integers, list(range(m.lanes)))
        totals = [self._variable(idle) for _ in range(self.steps.rows)]
        for row, i in self._vectors(width):
            left = b.trunc(b.sub(INDEX(width), i), ir.IntType(32))
            count = b.insert_element(ir.Constant(m.integers, ir.Undefined), left, ir.IntType(32)(0))
            zeros = ir.Constant(m.integers, [0] * m.lanes)
            count = b.shuffle_vector(count, ir.Constant(m.integers, ir.Undefined), zeros)
            x = b.select(b.icmp_signed("<", lane, count), self._read(arg, row, i, width), idle)
            b.store(elementwise(m, b, op, [b.load(totals[row]), x]), totals[row])
        for row, variable in enumerate(totals):
            total, half = b.load(variable), m.lanes
            while half > 1:
                half //= 2
                order = [(place + half) % m.lanes for place in range(m.lanes)]
                turned = b.shuffle_vector(total, total, ir.Constant(m.integers, order))
                total = elementwise(m, b, op, [total, turned])
            self._store(total, self.rooms[number], row, 1, INDEX(0))

    def _variable(self, start: Any) -> Any:
        with self.b.goto_entry_block():
            variable = self.b.alloca(self.m.vector)
        self.b.store(start, variable)
        return variable

    def _product(self, number: int) -> None:
        """x times a matrix, panel by panel: a panel holds, for each entry of x, the next ``panel`` vectors."""
        b, value, m = self.b, self.program.values[number], self.m
        x, weight = value.args
        columns, count = self.program.values[x].size, panel(value.size, self.steps.rows)
        stride = count * m.lanes
        panels = math.ceil(value.size / stride)
        place = self._place(x)
        pitch = self._pitch(self.program.values[place.base].size)
        with loop(b, INDEX(0), INDEX(panels)) as block:
            start = b.gep(self.shared[weight], [b.mul(block, INDEX(columns * stride))])
            sums = [[self._variable(m.splat(0.0)) for _ in range(count)] for _ in range(self.steps.rows)]
            with loop(b, INDEX(0), INDEX(columns)) as column:
                line = b.gep(start, [b.mul(column, INDEX(stride))])
                vectors = [
                    b.load(b.bitcast(b.gep(line, [INDEX(part * m.lanes)]), m.vector.as_pointer()), align=4)
                    for part in range(count)
                ]
                for row in range(self.steps.rows):
                    at = b.add(column, INDEX(self.rooms[place.base] + row * pitch + place.offset))
                    entry = self._splat(b.load(b.gep(self.room, [at])))
                    for part in range(count):
                        total = m.fma(b, entry, vectors[part], b.load(sums[row][part]))
                        b.store(total, sums[row][part])
            for row in range(self.steps.rows):
                for part in range(count):
                    total = b.load(sums[row][part])
                    if value.size == 1:
                        total = self._splat(b.extract_element(total, ir.IntType(32)(0)))
                    if part * m.lanes < self._pitch(value.size):
                        i = b.add(b.mul(block, INDEX(stride)), INDEX(part * m.lanes))
                        inside = b.icmp_signed("<", i, INDEX(value.size))
                        with b.if_then(inside):
                            self._store(total, self.rooms[number], row, value.size, i)
