"""Sums of shifted copies of one tensor, read backwards: which positions of it each position of the result takes.

    terms = read(node, match)      # y = Σ number·Π factors·x[p + offset], each on a box of the result

What moves whole boxes of values (``slice``, ``pad``, ``roll``, ``cat``) and what is linear (sums, products with a
number or a weight) is followed from the result until all paths meet in one tensor. Extents stay symbolic: a box is
known by where it begins in the result, where in the tensor, and how long it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import sympy
from torch.fx import Node

from ..axes import AxisRole, roles_of
from ..match import Match, shape_of
from .boxes import Piece, Term, extent, ordered, parts_of
from .products import is_tensor

__all__ = ["SUMS", "Shifts", "moved_axes", "read"]

# The last operator of a sum of copies.
SUMS = frozenset({"add", "sub", "rsub", "cat", "diff", "lerp"})
# Operators that a sum of shifted copies consists of at most.
_MOST = 64


@dataclass(frozen=True)
class Shifts:
    """A sum of copies of ``source``, computed by ``region``."""

    source: Node
    terms: tuple[Term, ...]
    region: tuple[Node, ...]


def read(node: Node, match: Match) -> Shifts:
    """The copies that ``node`` is the sum of.

    Raises:
        Refusal: where it is no such sum: several tensors are added, or all is moved alike.
    """
    whole = tuple(Piece(sympy.Integer(0), sympy.Integer(0), extent(size)) for size in shape_of(node))
    waiting: dict[Node, list[Term]] = {node: [Term(whole)]}
    region: list[Node] = []
    while waiting:
        source, terms = next(iter(waiting.items()))
        if len(waiting) == 1 and is_tensor(source) and len({term.offset for term in terms}) > 1:
            return Shifts(source, tuple(terms), tuple(sorted(region)))
        match.require(len(region) < _MOST, "the sum is too long", node)
        last = max(waiting)
        parts = parts_of(last, match)
        if parts is None:
            alone = "all positions are moved alike: nothing is added" if len(waiting) == 1 else ""
            match.refuse(alone or f"{last.name} is no copy of what is added to it", last)
        region.append(last)
        match.passed[last] = None
        terms = waiting.pop(last)
        for part, through in parts:
            waiting[part] = _collected([*waiting.get(part, ()), *(one for term in terms for one in through(term))])
    return match.refuse("nothing but zeros", node)


def moved_axes(found: Shifts, match: Match) -> list[int]:
    """The axes along which copies that meet are moved apart; each must be proven to hold positions."""
    roles = roles_of(found.source)
    axes = [axis for axis in range(len(roles)) if any(term.offset[axis] != 0 for term in found.terms)]
    for axis in axes:
        role = roles[axis]
        known = role is AxisRole.POSITION or (role is AxisRole.BATCH and AxisRole.BATCH in roles[:axis])
        match.require(known, f"axis {axis} is not proven to be a position axis, it is {role.value}", found.source)
    meet = any(
        first.offset != second.offset and not any(_apart(first, second, axis, found.source) for axis in axes)
        for first, second in combinations(found.terms, 2)
    )
    match.require(meet, "positions are moved, but no two of them meet")
    return axes


def _apart(first: Term, second: Term, axis: int, node: Node) -> bool:
    """Whether two copies give different positions along an axis."""
    one, two = first.pieces[axis], second.pieces[axis]
    ends = (one.at + one.length, two.at), (two.at + two.length, one.at)
    return any(ordered(end, start, node) in (-1, 0) for end, start in ends)


def _collected(terms: Iterable[Term]) -> list[Term]:
    """Copies of the same box with the same factors as one; boxes side by side, moved alike, as one box."""
    found: dict[Any, Term] = {}
    for term in terms:
        key = (term.pieces, term.factors)
        found[key] = replace(term, number=found[key].number + term.number) if key in found else term
    merged: list[Term] = []
    for term in found.values():
        for place, other in enumerate(merged):
            if (both := _side_by_side(other, term)) is not None:
                merged[place] = both
                break
        else:
            merged.append(term)
    return [term for term in merged if term.number]


def _side_by_side(first: Term, second: Term) -> Term | None:
    if (first.number, first.factors, first.offset) != (second.number, second.factors, second.offset):
        return None
    apart = [place for place, (a, b) in enumerate(zip(first.pieces, second.pieces, strict=True)) if a != b]
    if len(apart) != 1:
        return None
    (place,) = apart
    one, two = first.pieces[place], second.pieces[place]
    if one.wraps or two.wraps:
        return None
    for low, high in ((one, two), (two, one)):
        if sympy.expand(low.at + low.length - high.at) == 0:
            both = Piece(low.at, low.start, sympy.expand(low.length + high.length))
            return replace(first, pieces=(*first.pieces[:place], both, *first.pieces[place + 1 :]))
    return None
