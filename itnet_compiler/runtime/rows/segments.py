"""Rows in parts: where each value of a step is cut, so that slicing and joining only regroup parts.

Gates are slices of a product, and their gradients are joined again. Where every value is cut at the places at which any
value that it meets is sliced or joined, neither moves any number.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from ...ir.pair.primitives import ELEMENTWISE
from ...ir.pair.program import Program

__all__ = ["Segment", "segments"]

# First entry, and the one after the last.
Segment = tuple[int, int]


def segments(program: Program, carried: Sequence[tuple[int, int]]) -> list[tuple[Segment, ...]]:
    """The parts of each value; of a carried value before (input number, −1 for none) and after a step the same."""
    cuts: list[set[int]] = [set() for _ in program.values]
    relations = [*_relations(program, carried)]
    for whole, start, _, size in relations:
        cuts[whole] |= {start, start + size} - {0, program.values[whole].size}
    changed = True
    while changed:
        before = sum(map(len, cuts))
        for whole, start, part, size in relations:
            inside = {cut - start for cut in cuts[whole] if start < cut < start + size}
            cuts[part] |= inside
            cuts[whole] |= {cut + start for cut in cuts[part]}
        changed = sum(map(len, cuts)) > before
    found = []
    for value, inner in zip(program.values, cuts, strict=True):
        edges = [0, *sorted(inner), value.size]
        found.append(tuple(itertools.pairwise(edges)))
    return found


def _relations(program: Program, carried: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
    """(a, start, b, size): ``size`` entries of value a from ``start`` on are value b, or meet it entry by entry."""
    values = program.values
    for number, value in enumerate(values):
        if value.op == "slice":
            start = int(value.attrs[1])  # type: ignore[call-overload]
            yield value.args[0], start, number, value.size
        elif value.op == "cat":
            start = 0
            for arg in value.args:
                yield number, start, arg, values[arg].size
                start += values[arg].size
        elif value.op in ELEMENTWISE or value.op in ("reshape", "expand"):
            for arg in value.args:
                if values[arg].size == value.size > 1:
                    yield number, 0, arg, value.size
    for before, place in carried:
        after = program.outputs[place]
        if before >= 0 and values[before].size == values[after].size:
            yield before, 0, after, values[before].size
