"""Folding: the integrals of a model as a tree of blocks in which equal siblings are shown once, ``layer.0 … 11 × 12``.

Two blocks are equal when their integrals are: same names below, same layer, domain and kernel. Widths may differ, since
they belong to the operands, and so may the number of equal blocks inside: stages of 3, 5 and 2 fold as ``× 3, 5, 2``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from .facts import Row

__all__ = ["Item", "Line", "fold", "lines"]


@dataclass
class Item:
    """A block or integral, standing for all its equal siblings.

    Attributes:
        names: Last part of the path, of each sibling it stands for.
        counts: How many siblings it stands for; one entry for every block that was folded above it.
        row: The integral at this very path, if any.
        parts: What is below.
        kinds: Layers below, counted, where the parts are not shown.
    """

    names: list[str]
    row: Row | None = None
    parts: list[Item] = field(default_factory=list)
    counts: list[int] = field(default_factory=lambda: [1])
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Line:
    """One line to show: indented label, ``× 12`` or nothing, and the integral or the layers counted."""

    depth: int
    label: str
    times: str
    row: Row | None
    kinds: str


def fold(rows: Iterable[Row], depth: int | None = None) -> list[Item]:
    """The folded tree; what is more than ``depth`` levels down is counted by layer instead of shown."""
    root = Item([""])
    for row in rows:
        here = root
        for part in row.name.split("."):
            known = next((item for item in here.parts if item.names == [part]), None)
            if known is None:
                known = Item([part])
                here.parts.append(known)
            here = known
        here.row = row
    _fold_parts(root, depth)
    return root.parts


def _fold(item: Item, depth: int | None) -> None:
    """Fold what is below ``item``; ``depth`` is the number of levels that may be shown there."""
    # A chain of single parts is shown as one line, so it is one level.
    chain = len(item.parts) == 1 and item.row is None
    if depth == 0 and item.parts and not chain:
        item.kinds = Counter(row.origin for row in _rows(item))
        item.parts, item.row = [], None
        return
    _fold_parts(item, depth if chain or depth is None else depth - 1)
    # A block in which only counts are left to show needs no line for them.
    if item.row is None and len(item.parts) == 1 and item.parts[0].kinds and len(item.parts[0].names) == 1:
        item.kinds, item.parts = item.parts[0].kinds, []


def _fold_parts(item: Item, depth: int | None) -> None:
    folded: list[Item] = []
    for part in item.parts:
        _fold(part, depth)
        if folded and _siblings(folded[-1], part) and _body(folded[-1]) == _body(part):
            _absorb(folded[-1], part)
        else:
            folded.append(part)
    item.parts = folded


def _rows(item: Item) -> Iterable[Row]:
    if item.row is not None:
        yield item.row
    for part in item.parts:
        yield from _rows(part)


def _siblings(first: Item, second: Item) -> bool:
    a, b = (re.fullmatch(r"(.*?)\d+", name) for name in (first.names[-1], second.names[0]))
    return a is not None and b is not None and a[1] == b[1]


def _body(item: Item) -> Hashable:
    row = item.row
    what = None if row is None else (row.origin, row.domain, row.kernel, row.lowering)
    return what, tuple(sorted(item.kinds.items())), tuple((part.names[0], _body(part)) for part in item.parts)


def _absorb(first: Item, second: Item) -> None:
    """Let ``first`` stand for its sibling ``second`` too."""
    first.names += second.names
    first.counts[-1] += sum(second.counts)
    for mine, other in zip(first.parts, second.parts, strict=True):
        _gather(mine, other)


def _gather(mine: Item, other: Item) -> None:
    mine.counts += other.counts
    for below, beside in zip(mine.parts, other.parts, strict=True):
        _gather(below, beside)


def lines(items: Iterable[Item], depth: int = 0, prefix: str = "") -> list[Line]:
    """The lines to show, in order."""
    shown: list[Line] = []
    for item in items:
        label, times = prefix + _span(item), _times(item.counts)
        if item.row is None and len(item.parts) == 1 and not times:
            shown += lines(item.parts, depth, f"{label}.")
            continue
        kinds = ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in item.kinds.items())
        shown.append(Line(depth, label, times, item.row, kinds))
        shown += lines(item.parts, depth + 1)
    return shown


def _times(counts: list[int]) -> str:
    if len(set(counts)) == 1:
        return f"× {counts[0]}" if counts[0] > 1 else ""
    return "× " + (", ".join(map(str, counts)) if len(counts) <= 4 else f"{min(counts)}–{max(counts)}")


def _span(item: Item) -> str:
    """``0 … 11``, ``0, 2`` where numbers are left out, ``1 …`` where the blocks folded above differ in how many."""
    names = item.names
    if len(set(item.counts)) > 1:
        return f"{names[0]} …"
    if len(names) == 1:
        return names[0]
    numbers = [int(re.sub(r".*?(\d+)$", r"\1", name)) for name in names]
    gaps = any(after - before != 1 for before, after in pairwise(numbers))
    if gaps and len(names) <= 4:
        return ", ".join([names[0], *map(str, numbers[1:])])
    return f"{names[0]} … {numbers[-1]}"
