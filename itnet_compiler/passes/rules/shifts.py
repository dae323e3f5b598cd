"""Rule ``shifts``: sums of shifted copies of one tensor, by ``roll``, padding, slices or ``cat``."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import sympy
from torch.fx import Node

from ...ir.domain import Window
from ...ir.kernel import Spec
from ...ir.stencil import Stencil, Tap, Weight
from ..axes import AxisRole, roles_of
from ..forms.boxes import Term, extent
from ..forms.shifts import Shifts, moved_axes, read
from ..match import Match, Proposal, Refusal, Unrelated, propose, rank, rule, shape_of, value_of
from ..operators import CREATIONS, LIKE, REINDEXING, operator_name

__all__ = ["shifts"]


@rule(
    "shifts",
    *("aten.add.Tensor", "aten.sub.Tensor", "aten.rsub.Tensor", "aten.cat.default", "aten.diff.default"),
    *("aten.lerp.Scalar", "aten.lerp.Tensor"),
)
def shifts(node: Node, match: Match) -> Proposal:
    """y[p] = Σ_k w_k·x[p + o_k], where two offsets at least differ along axes that are proven to hold positions."""
    try:
        found = read(node, match)
    except Refusal as refusal:
        if any(_only_moves(one) for one in refusal.passed if one is not node):
            raise
        raise Unrelated(refusal.reason, refusal.node, refusal.depth) from refusal
    source = found.source
    dtypes = {value_of(one).dtype for one in (node, source)}
    match.require(len(dtypes) == 1 and dtypes.pop().is_floating_point, "operands and result differ in dtype")
    axes = moved_axes(found, match)
    match.require(len(axes) <= _MOST_AXES, "shifted along more than three axes")
    growth = [_number(extent(shape_of(node)[axis]) - extent(shape_of(source)[axis]), match) for axis in axes]
    around = _boundary(found, axes, match)
    channel_axis, channels = _channels(found, axes, match)
    for factor in _factors(found.terms):
        moved = [axis for axis in _extents(factor)[0] if rank(node) + axis in axes]
        match.require(not moved, "the weight of a copy differs from place to place", factor)
    roles = {factor: f"weight{number or ''}" for number, factor in enumerate(_factors(found.terms))}
    collected: dict[Any, list[tuple[float, tuple[str, ...]]]] = {}
    for term in found.terms:
        offset = tuple(_number(term.offset[axis], match) for axis in axes)
        if not around:
            _require_whole(node, term, axes, offset, growth, match)
        part = _part(term, channel_axis, channels, match)
        collected.setdefault((offset, part), []).append((term.number, tuple(roles[each] for each in term.factors)))
    taps = tuple(Tap(offset, _weight(terms), part) for (offset, part), terms in collected.items())
    taps = tuple(tap for tap in taps if tap.weight)
    for tap in taps:
        wide = channels and any(names for _, names in tap.weight) and tap.channels
        match.require(not wide, "weights of some channels only")
    match.require(len({tap.offset for tap in taps}) > 1, "all positions are moved alike: nothing is added")
    last = rank(source)
    kernel = Stencil(
        rank=last,
        axes=tuple(axis - last for axis in axes),
        taps=taps,
        weights=tuple((role, *_extents(factor)) for factor, role in roles.items()),
        channel_axis=channel_axis - last if channels else 0,
        channels=channels,
    )
    operands = {"input": source} | {role: factor for factor, role in roles.items()}
    inside = set(found.region)
    shared = {one for one in inside - {node} if any(user not in inside for user in one.users)}
    for one in shared:
        match.require(_only_moves(one), f"the intermediate value {one.name} is used elsewhere", one)
    spec = Spec(kernel, _window(taps, growth, circular=around), "shifts", tuple(operands))
    return propose(spec, operands, *found.region, shared=frozenset(_above(shared, inside)))


_MOST_AXES = 3


def _number(value: sympy.Expr, match: Match) -> int:
    value = sympy.expand(value)
    match.require(value.is_Integer, f"a copy is moved by {value} positions, which depends on sizes")
    return int(value)


def _boundary(found: Shifts, axes: Iterable[int], match: Match) -> bool:
    """Whether positions are counted around the end, along all axes that copies are moved along."""
    ways = {term.pieces[axis].wraps for term in found.terms for axis in axes if term.offset[axis] != 0}
    match.require(len(ways) == 1, "some copies are rolled and others padded")
    around = ways.pop()
    whole = all(_is_whole(found, term, axis) for term in found.terms for axis in axes) if around else True
    match.require(whole, "some copies are rolled and others cut")
    return around


def _is_whole(found: Shifts, term: Term, axis: int) -> bool:
    """Whether a copy gives every position along an axis."""
    piece, size = term.pieces[axis], extent(shape_of(found.source)[axis])
    return piece.at == 0 and sympy.expand(piece.length - size) == 0


def _channels(found: Shifts, moved: list[int], match: Match) -> tuple[int, int]:
    """The axis along which copies give some of the channels only, and its extent; (0, 0) where there is none."""
    apart = [
        axis
        for axis in range(rank(found.source))
        if axis not in moved and not all(_is_whole(found, term, axis) for term in found.terms)
    ]
    if not apart:
        return 0, 0
    match.require(len(apart) == 1, "copies are cut along several axes")
    (axis,) = apart
    role, size = roles_of(found.source)[axis], shape_of(found.source)[axis]
    cut = role in (AxisRole.FEATURE, AxisRole.UNKNOWN)
    match.require(cut, f"copies are cut along axis {axis}, which is {role.value}")
    match.require(isinstance(size, int), "copies are cut along an axis whose extent is free")
    return axis, size


def _part(term: Term, axis: int, channels: int, match: Match) -> tuple[int, int] | None:
    if not channels:
        return None
    low, length = (_number(each, match) for each in (term.pieces[axis].at, term.pieces[axis].length))
    return None if (low, length) == (0, channels) else (low, low + length)


def _require_whole(
    node: Node, term: Term, axes: list[int], offset: tuple[int, ...], growth: list[int], match: Match
) -> None:
    """A copy gives every position of the result for which there is one in the tensor."""
    for axis, by, more in zip(axes, offset, growth, strict=True):
        piece = term.pieces[axis]
        end = extent(shape_of(node)[axis]) - piece.at - piece.length
        fits = sympy.expand(piece.at) == max(0, -by) and sympy.expand(end) == max(0, more + by)
        match.require(fits, "a copy is cut off: the kernel is not the same everywhere")


def _factors(terms: Iterable[Term]) -> list[Node]:
    return list(dict.fromkeys(factor for term in terms for factor in term.factors))


def _weight(terms: list[tuple[float, tuple[str, ...]]]) -> Weight:
    """Equal products added up."""
    found: dict[tuple[str, ...], float] = {}
    for number, roles in terms:
        key = tuple(sorted(roles))
        found[key] = found.get(key, 0.0) + number
    return tuple((number, roles) for roles, number in found.items() if number)


def _extents(factor: Node) -> tuple[tuple[int, ...], int]:
    """The axes on which a weight is wider than 1, from the end, and how many it has."""
    count = rank(factor)
    wide = (axis - count for axis, size in enumerate(shape_of(factor)) if not (isinstance(size, int) and size == 1))
    return tuple(wide), count


def _window(taps: Iterable[Tap], growth: list[int], *, circular: bool) -> Window:
    """The smallest window with all taps."""
    size, padding, dilation = [], [], []
    for more, offsets in zip(growth, zip(*(tap.offset for tap in taps), strict=True), strict=True):
        low, high = min(offsets), max(offsets)
        step = math.gcd(*(offset - low for offset in offsets)) or 1
        size.append((high - low) // step + 1)
        dilation.append(step)
        padding.append((-low, more + high))
    ones = (1,) * len(size)
    return Window(tuple(size), ones, tuple(padding), tuple(dilation), boundary="circular" if circular else "zeros")


def _only_moves(node: Node) -> bool:
    return operator_name(node) in REINDEXING | LIKE | CREATIONS | {"getitem"}


def _above(shared: set[Node], inside: set[Node]) -> set[Node]:
    """What is shared and what it is made of."""
    found, waiting = set(shared), list(shared)
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source in inside and source not in found:
                found.add(source)
                waiting.append(source)
    return found
