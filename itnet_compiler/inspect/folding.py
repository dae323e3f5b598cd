"""Folding: the integrals of a model as a tree of blocks in which equal siblings are shown once, ``layer.0 … 11 × 12``.

Two blocks are equal when their integrals are: same names below, same layer, domain and kernel. Widths may differ (they
belong to the operands), and so may the number of equal blocks inside: stages of 3, 5 and 2 blocks fold as ``× 3, 5, 2``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

from ..ir.integral import Integral

__all__ = ["Item", "Line", "fold", "lines"]


@dataclass
class Item:
    """A block or integral, standing for all its equal siblings.

    Attributes:
        names: Last part of the path, of each sibling it stands for.
        counts: How many siblings it stands for; one entry for every block that was folded above it.
        integral: The integral at this very path, if any.
        parts: What is below.
        kinds: Layers below, counted, where the parts are not shown.
    """

    names: list[str]
    integral: Integral | None = None
    parts: list[Item] = field(default_factory=list)
    counts: list[int] = field(default_factory=lambda: [1])
    kinds: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Line:
    """One line to show: indented label, ``× 12`` or nothing, and the integral or the layers counted."""

    depth: int
    label: str
    times: str
    integral: Integral | None
    kinds: str


def fold(integrals: Iterable[Integral], depth: int | None = None) -> list[Item]:
    """The folded tree; blocks deeper than ``depth`` are counted by layer instead of shown."""
    root = Item([""])
    for integral in integrals:
        here = root
        for part in integral.name.split("."):
            known = next((item for item in here.parts if item.names == [part]), None)
            if known is None:
                known = Item([part])
                here.parts.append(known)
            here = known
        here.integral = integral
    _fold(root, depth)
    return root.parts


def _fold(item: Item, depth: int | None) -> None:
    # A chain of single parts is shown as one line, so it counts as one level.
    below = depth if depth is None or (len(item.parts) == 1 and item.integral is None) else depth - 1
    if below is not None and below < 0 and item.parts:
        item.kinds = Counter(integral.origin for integral in _integrals(item))
        item.parts, item.integral = [], None
        return
    folded: list[Item] = []
    for part in item.parts:
        _fold(part, below)
        if folded and _siblings(folded[-1], part) and _body(folded[-1]) == _body(part):
            _absorb(folded[-1], part)
        else:
            folded.append(part)
    item.parts = folded


def _integrals(item: Item) -> Iterable[Integral]:
    if item.integral is not None:
        yield item.integral
    for part in item.parts:
        yield from _integrals(part)


def _siblings(first: Item, second: Item) -> bool:
    a, b = (re.fullmatch(r"(.*?)\d+", name) for name in (first.names[-1], second.names[0]))
    return a is not None and b is not None and a[1] == b[1]


def _body(item: Item) -> Hashable:
    node = item.integral
    what = None if node is None else (node.origin, node.spec.describe(), node.plan)
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
        if item.integral is None and len(item.parts) == 1 and not times:
            shown += lines(item.parts, depth, f"{label}.")
            continue
        kinds = ", ".join(f"{count} {kind}" if count > 1 else kind for kind, count in item.kinds.items())
        shown.append(Line(depth, label, times, item.integral, kinds))
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
    gaps = any(after - before != 1 for before, after in zip(numbers, numbers[1:], strict=False))
    if gaps and len(names) <= 4:
        return ", ".join([names[0], *map(str, numbers[1:])])
    return f"{names[0]} … {numbers[-1]}"
