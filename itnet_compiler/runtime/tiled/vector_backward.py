"""The backward kernel as LLVM code: the kernel is computed again, by blocks of rows for each tile of sources."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.pair.adjoint import SEED
from ...ir.pair.program import QUERY, SOURCE, Program
from .machine import Written
from .vector_code import GROUPS, INDEX, Frame, loop
from .vector_kernel import WIDE, KernelCode, Shape

__all__ = ["POINTERS", "ROWS", "Targets", "write_backward"]

# Queries that a tile of sources serves before the next tile is read.
ROWS = 16

POINTERS = (
    *("query", "source", "shared", "value", "mask", "grad", "normaliser", "slope"),
    *("grad_query", "grad_source", "grad_value", "grad_shared", "scratch"),
)


@dataclass(frozen=True)
class Targets:
    """Where the cotangents of a backward program go: output of the program → offset in the gradient of its side.

    Attributes:
        query, source, shared: (place among the program's outputs, offset).
        products: (place of the left factor, offset of the matrix in the shared gradient); the right one is next.
        widths: Elements of a row of the query gradient, a tile of the source gradient, the shared gradient.
    """

    query: tuple[tuple[int, int], ...]
    source: tuple[tuple[int, int], ...]
    shared: tuple[tuple[int, int], ...]
    products: tuple[tuple[int, int], ...]
    widths: tuple[int, int, int]


def write_backward(program: Program, shape: Shape, targets: Targets) -> Written:
    """Gradients from rows ``start`` to ``stop`` of one sample: of the rows, and added to those of all sources."""
    k = KernelCode(program, shape, POINTERS)
    b = k.b
    query, _, shared = targets.widths
    rows, common = k.room(ROWS * query), k.room(shared)
    with loop(b, k.given["start"], k.given["stop"], ROWS) as first:
        k.clear(rows, ROWS * query)
        k.clear(common, shared)
        last = b.add(first, INDEX(ROWS))
        last = b.select(b.icmp_signed("<", last, k.given["stop"]), last, k.given["stop"])
        with loop(b, *k.tiles(*k.bounds(first, b.sub(last, INDEX(1))))) as tile, loop(b, first, last) as row:
            start, stop = k.bounds(row, row)
            begin, end = k.tiles(start, stop)
            with b.if_then(b.and_(b.icmp_signed(">=", tile, begin), b.icmp_signed("<", tile, end))):
                frame = k.frame(row, tile)
                k.code.write(b, frame, k.code.plan.before)
                _seeds(k, frame, row, tile, k.allowed(row, tile, start, stop))
                k.code.write(b, frame, k.code.plan.after)
                own = b.gep(rows, [b.mul(b.sub(row, first), INDEX(query * shape.lanes))])
                _collect(k, frame, tile, targets, own, common)
        with loop(b, first, last) as row, loop(b, INDEX(0), INDEX(query)) as place:
            number = k.total(k.get(rows, b.add(b.mul(b.sub(row, first), INDEX(query)), place)))
            b.store(number, b.gep(k.given["grad_query"], [b.add(b.mul(row, INDEX(query)), place)]))
        with loop(b, INDEX(0), INDEX(shared)) as place:
            room = b.gep(k.given["grad_shared"], [place])
            b.store(b.fadd(b.load(room), b.fpext(k.total(k.get(common, place)), WIDE)), room)
    return k.finish()


def _seeds(k: KernelCode, frame: Frame, row: Any, tile: Any, allowed: Sequence[Any]) -> None:
    """Cotangent of the kernel of each head, and the gradient of the values."""
    b, m, shape, code = k.b, k.m, k.shape, k.code
    seed = next((item for item in k.program.inputs if item.name == SEED), None)
    value, grad_value = k.channel("value", tile, k.channels), k.channel("grad_value", tile, k.channels)
    grad = b.gep(k.given["grad"], [b.mul(row, INDEX(k.channels))])
    alone = seed is not None and math.prod(seed.shape) == 1 and shape.heads > 1
    if alone and seed is not None:
        k.clear(code.slot(b, frame, seed.number), GROUPS)
    with k.heads() as (head, channel):

        def of_row(name: str, head: Any = head) -> Any:
            place = b.add(b.mul(row, INDEX(shape.heads)), head)
            return code.splat(b, b.load(b.gep(k.given[name], [place])))

        def pull_at(_: int, place: Any, channel: Any = channel) -> Any:
            return code.splat(b, b.load(b.gep(grad, [b.add(channel, place)])))

        def value_at(place: Any, group: int, channel: Any = channel) -> Any:
            return code.load(b, value, b.add(channel, place), group)

        (raw,) = code.product(b, 1, INDEX(shape.width), pull_at, value_at, [[m.splat(0.0)] * GROUPS])
        weights, seeds = [], []
        for inside, x, pull in zip(allowed, k.kernel(frame, head), raw, strict=True):
            if shape.normalise:
                x = m.call(b, "exp", b.fsub(x, of_row("normaliser")))
                pull = b.fmul(x, b.fsub(pull, of_row("slope")))
            weights.append(b.select(inside, x, m.splat(0.0)))
            seeds.append(b.select(inside, pull, m.splat(0.0)))
        with loop(b, INDEX(0), INDEX(shape.width)) as place:
            pull = pull_at(0, place)
            for group in range(GROUPS):
                total = m.fma(b, weights[group], pull, code.load(b, grad_value, b.add(channel, place), group))
                code.store(b, total, grad_value, b.add(channel, place), group)
        if seed is not None:
            slot = code.slot(b, frame, seed.number)
            for group in range(GROUPS):
                number = b.fadd(code.load(b, slot, INDEX(0), group), seeds[group]) if alone else seeds[group]
                code.store(b, number, slot, INDEX(0) if math.prod(seed.shape) == 1 else head, group)


def _collect(k: KernelCode, frame: Frame, tile: Any, targets: Targets, own: Any, common: Any) -> None:
    """Add the cotangents of a row and a tile to the gradients."""
    b, code = k.b, k.code
    outputs = k.program.outputs
    for room, group_targets in ((own, targets.query), (common, targets.shared)):
        for output, offset in group_targets:
            with loop(b, INDEX(0), INDEX(k.program.values[outputs[output]].size)) as element:
                place = b.add(element, INDEX(offset))
                total = k.get(room, place)
                for group in range(GROUPS):
                    total = b.fadd(total, code.read(b, frame, outputs[output], element, group))
                k.put(total, room, place)
    grad_source = k.channel("grad_source", tile, targets.widths[SOURCE - QUERY])
    for output, offset in targets.source:
        with loop(b, INDEX(0), INDEX(k.program.values[outputs[output]].size)) as element:
            place = b.add(element, INDEX(offset))
            for group in range(GROUPS):
                total = b.fadd(
                    code.load(b, grad_source, place, group), code.read(b, frame, outputs[output], element, group)
                )
                code.store(b, total, grad_source, place, group)
    for output, offset in targets.products:
        _outer(k, frame, outputs[output], outputs[output + 1], offset, common)


def _outer(k: KernelCode, frame: Frame, left: int, right: int, offset: int, room: Any) -> None:
    """Add left ⊗ right, summed over leading axes and vectors, in blocks that stay in registers."""
    b, code, m = k.b, k.code, k.m
    rows, columns = k.program.values[left].shape[-1], k.program.values[right].shape[-1]
    lead = math.prod(k.program.values[left].shape[:-1])

    def block(front: Any, top: Any, height: int, side: Any, width: int) -> None:
        places = [
            [b.add(b.mul(b.add(top, INDEX(i)), INDEX(columns)), b.add(side, INDEX(offset + j))) for j in range(width)]
            for i in range(height)
        ]
        sums = [[k.get(room, place) for place in line] for line in places]
        for group in range(GROUPS):
            ones = [
                code.read(b, frame, left, b.add(b.mul(front, INDEX(rows)), b.add(top, INDEX(i))), group)
                for i in range(height)
            ]
            for j in range(width):
                other = code.read(b, frame, right, b.add(b.mul(front, INDEX(columns)), b.add(side, INDEX(j))), group)
                for i in range(height):
                    sums[i][j] = m.fma(b, ones[i], other, sums[i][j])
        for line, found in zip(places, sums, strict=True):
            for place, total in zip(line, found, strict=True):
                k.put(total, room, place)

    with loop(b, INDEX(0), INDEX(lead)) as front:
        code.blocks(
            b,
            rows,
            lambda top, height: code.blocks(b, columns, lambda side, width: block(front, top, height, side, width)),
        )
