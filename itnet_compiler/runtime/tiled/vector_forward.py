"""The forward kernel as LLVM code: row by row over the tiles of sources, with an online softmax."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ...ir.pair.program import Program
from .machine import Written
from .vector_code import GROUPS, INDEX, loop
from .vector_kernel import KernelCode, Shape
from .vector_math import FLOAT, INT

__all__ = ["POINTERS", "write_forward"]

POINTERS = ("query", "source", "shared", "value", "mask", "output", "normaliser", "scratch")


def write_forward(program: Program, shape: Shape) -> Written:
    """y and the log-normaliser of rows ``start`` to ``stop`` of one sample."""
    k = KernelCode(program, shape, POINTERS)
    b, m = k.b, k.m
    sums, peaks, totals = k.room(k.channels), k.room(shape.heads), k.room(shape.heads)
    with loop(b, k.given["start"], k.given["stop"]) as row:
        k.clear(sums, k.channels)
        k.clear(peaks, shape.heads, -math.inf)
        k.clear(totals, shape.heads)
        start, stop = k.bounds(row, row)
        with loop(b, *k.tiles(start, stop)) as tile:
            frame = k.frame(row, tile)
            k.code.write(b, frame, k.code.plan.before)
            allowed = k.allowed(row, tile, start, stop)
            value = k.channel("value", tile, k.channels)
            with k.heads() as (head, channel):
                weights, decay = _weights(k, k.kernel(frame, head), allowed, head, peaks, totals)
                with loop(b, INDEX(0), INDEX(shape.width)) as place:
                    element = b.add(channel, place)
                    total = k.get(sums, element)
                    total = total if decay is None else b.fmul(total, decay)
                    for group in range(GROUPS):
                        total = m.fma(b, weights[group], k.code.load(b, value, element, group), total)
                    k.put(total, sums, element)
        _store_row(k, row, sums, peaks, totals)
    return k.finish()


def _weights(
    k: KernelCode, kernel: Sequence[Any], allowed: Sequence[Any], head: Any, peaks: Any, totals: Any
) -> tuple[list[Any], Any]:
    """Weights of a tile and, where they are a softmax, the factor of what was summed before (online softmax)."""
    b, m = k.b, k.m
    if not k.shape.normalise:
        return [b.select(inside, x, m.splat(0.0)) for inside, x in zip(allowed, kernel, strict=True)], None
    scores = [b.select(inside, x, m.splat(-math.inf)) for inside, x in zip(allowed, kernel, strict=True)]
    highest = scores[0]
    for score in scores[1:]:
        highest = m.binary(b, "maxnum", highest, score)
    reduce = m.intrinsic("vector.reduce.fmax", FLOAT, [m.vector])
    before = k.get(peaks, head)
    after = m.binary(b, "maxnum", before, k.code.splat(b, b.call(reduce, [highest])))
    none = b.fcmp_ordered("==", after, m.splat(-math.inf))
    level = b.select(none, m.splat(0.0), after)
    weights = [m.call(b, "exp", b.fsub(score, level)) for score in scores]
    decay = m.call(b, "exp", b.fsub(before, level))
    total = b.fmul(k.get(totals, head), decay)
    for weight in weights:
        total = b.fadd(total, weight)
    k.put(total, totals, head)
    k.put(after, peaks, head)
    return weights, decay


def _store_row(k: KernelCode, row: Any, sums: Any, peaks: Any, totals: Any) -> None:
    b, m, shape = k.b, k.m, k.shape
    output = b.gep(k.given["output"], [b.mul(row, INDEX(k.channels))])
    with k.heads() as (head, channel):
        scale = FLOAT(1.0)
        if shape.normalise:
            total = k.total(k.get(totals, head))
            nothing = b.fcmp_ordered("==", total, FLOAT(0.0))
            scale = b.select(nothing, FLOAT(0.0), b.fdiv(FLOAT(1.0), total))
            logarithm = m.call(b, "log", k.code.splat(b, total))
            level = b.extract_element(b.fadd(k.get(peaks, head), logarithm), INT(0))
            place = b.add(b.mul(row, INDEX(shape.heads)), head)
            b.store(b.select(nothing, FLOAT(-math.inf), level), b.gep(k.given["normaliser"], [place]))
        with loop(b, INDEX(0), INDEX(shape.width)) as place:
            element = b.add(channel, place)
            b.store(b.fmul(k.total(k.get(sums, element)), scale), b.gep(output, [element]))
