"""What an axis is to the analysis of ``axes``: a product of factors with roles, aligned across views exactly.

An axis that a view has merged keeps its factors, slowest first, so that a later view can take it apart again. Each
factor points to a role variable; operators that relate axes share the variable or settle it, and so a role found late
(the first consumer of a model input) is known wherever the axis went before.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from .sizes import ONE, Monomial, aligned, monomial, product, quotient

__all__ = ["Axis", "AxisRole", "Factor", "Variable", "axis", "broadcast", "has_extent", "join", "regroup", "resized"]


class AxisRole(enum.Enum):
    """What an axis counts: samples, positions of the domain, channels; or not proven."""

    BATCH = "batch"
    POSITION = "position"
    FEATURE = "feature"
    UNKNOWN = "unknown"

    def __repr__(self) -> str:
        return self.value


class Variable:
    """A role that may still be unknown; unified variables are one.

    Attributes:
        from_input: Whether it belongs to an axis of a model input, to which layer conventions apply.
    """

    __slots__ = ("_parent", "_role", "from_input")

    def __init__(self, role: AxisRole = AxisRole.UNKNOWN, *, from_input: bool = False) -> None:
        self._parent: Variable | None = None
        self._role, self.from_input = role, from_input

    def root(self) -> Variable:
        """The variable that stands for all those unified with this one."""
        found = self
        while found._parent is not None:
            found = found._parent
        return found

    @property
    def role(self) -> AxisRole:
        """The role, where it is known by now."""
        return self.root()._role

    def settle(self, role: AxisRole) -> None:
        """Give the role, unless one is known."""
        root = self.root()
        if root._role is AxisRole.UNKNOWN:
            root._role = role

    def unify(self, other: Variable) -> None:
        """Make both one; two different known roles stay as they are."""
        mine, theirs = self.root(), other.root()
        if mine is theirs or AxisRole.UNKNOWN not in (mine._role, theirs._role):
            return
        if theirs._role is AxisRole.UNKNOWN:
            mine, theirs = theirs, mine
        mine._parent = theirs
        theirs.from_input = theirs.from_input or mine.from_input


@dataclass(frozen=True, eq=False)
class Factor:
    """A factor of an axis: its extent (int, SymInt or ``Monomial``) and role."""

    size: Any
    variable: Variable


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis of a tensor: the factors that it is a product of, slowest first; never empty."""

    factors: tuple[Factor, ...]

    @property
    def roles(self) -> frozenset[AxisRole]:
        """Roles of all factors."""
        return frozenset(factor.variable.role for factor in self.factors)

    @property
    def role(self) -> AxisRole:
        """The common role. Position flattened into features is feature: the domain has collapsed to a point."""
        roles = self.roles
        if len(roles) == 1:
            return next(iter(roles))
        for role in (AxisRole.UNKNOWN, AxisRole.BATCH):
            if role in roles:
                return role
        return AxisRole.FEATURE

    @property
    def is_one(self) -> bool:
        """Whether its extent is the constant 1."""
        return all(isinstance(factor.size, int) and factor.size == 1 for factor in self.factors)

    def settle(self, role: AxisRole) -> None:
        """Give the role to every factor that has none."""
        for factor in self.factors:
            factor.variable.settle(role)


def axis(size: Any, role: AxisRole = AxisRole.UNKNOWN, *, from_input: bool = False) -> Axis:
    """An axis of one factor with a variable of its own."""
    return Axis((Factor(size, Variable(role, from_input=from_input)),))


def resized(source: Axis, size: Any) -> Axis:
    """The axis after a slice, a pad, a concatenation …: same role, another extent, factors no longer valid."""
    if len(source.factors) == 1:
        return Axis((Factor(size, source.factors[0].variable),))
    return axis(size, source.role)


def join(first: Axis, second: Axis, size: Any) -> Axis:
    """The axis, of extent ``size``, of an elementwise result. Known beats unknown (and tells it); a contradiction
    between two known roles is unknown.
    """
    if first is second:
        return first
    one, two = first.role, second.role
    if one is two:
        if len(first.factors) == len(second.factors) == 1:
            first.factors[0].variable.unify(second.factors[0].variable)
        return first if len(first.factors) >= len(second.factors) else second
    for known, unknown in ((first, second), (second, first)):
        if unknown.role is AxisRole.UNKNOWN:
            if len(unknown.factors) == 1:
                unknown.settle(known.role)
            return known
    return axis(size)


def broadcast(operands: Iterable[Sequence[Axis]], shape: Sequence[Any]) -> list[Axis]:
    """Axes of an elementwise result of ``shape``; axes of extent 1 say nothing where another operand is wider."""
    operands = list(operands)
    result = []
    for place in range(-len(shape), 0):
        met = [axes[place] for axes in operands if len(axes) >= -place]
        met = [one for one in met if not one.is_one] or met
        if not met:
            result.append(axis(shape[place]))
            continue
        found = met[0]
        for other in met[1:]:
            found = join(found, other, shape[place])
        result.append(found)
    return result


def has_extent(one: Axis, size: Any) -> bool:
    """Whether the extent of an axis is ``size``, as expressions."""
    return product((monomial(factor.size), 1) for factor in one.factors) == monomial(size)


def regroup(axes: Sequence[Axis], shape: Sequence[Any]) -> list[Axis]:
    """Axes of a view with ``shape``: groups of factors and of new axes with equal products belong together."""
    factors = [factor for one in axes for factor in one.factors]
    wide = [factor for factor in factors if not _is_one(factor.size)]
    places = [place for place, size in enumerate(shape) if not _is_one(size)]
    result: list[Axis | None] = [None] * len(shape)
    if any(_is_zero(size) for size in (*shape, *(factor.size for factor in wide))):
        return [axis(size) for size in shape]
    marks = aligned([monomial(factor.size) for factor in wide], [monomial(shape[place]) for place in places])
    for (low, start), (high, stop) in pairwise(marks):
        group = places[start:stop]
        for place, found in zip(group, _split(wide[low:high], [shape[place] for place in group]), strict=True):
            result[place] = found
    _place_ones(factors, wide, places, marks, shape, result)
    return [found if found is not None else axis(size) for found, size in zip(result, shape, strict=True)]


def _split(factors: Sequence[Factor], sizes: Sequence[Any]) -> list[Axis]:
    """One group: merged into one axis, or taken apart."""
    if len(sizes) == 1 and factors:
        return [Axis(tuple(factors))]
    found = _taken_apart(factors, sizes)
    if found is not None:
        return found
    roles = {factor.variable.role for factor in factors}
    if len(roles) != 1 or AxisRole.UNKNOWN in roles:
        return [axis(size) for size in sizes]
    shared = factors[0].variable
    return [Axis((Factor(size, shared),)) for size in sizes]


def _taken_apart(factors: Sequence[Factor], sizes: Sequence[Any]) -> list[Axis] | None:
    """From the fastest axis on: whole factors, and of the last one a part that divides it; None where none does."""
    left = list(factors)
    result = []
    for size in reversed(sizes):
        need, taken = monomial(size), []
        while need != ONE:
            if not left:
                return None
            factor = left.pop()
            have = monomial(factor.size)
            if (rest := quotient(need, have)) is not None:
                taken.append(factor)
                need = rest
            elif (rest := quotient(have, need)) is not None:
                slow, fast = _two_parts(factor, rest, need)
                left.append(slow)
                taken.append(fast)
                need = ONE
            else:
                return None
        if not taken:
            return None
        result.append(Axis(tuple(reversed(taken))))
    return None if left else result[::-1]


def _two_parts(factor: Factor, slow: Monomial, fast: Monomial) -> tuple[Factor, Factor]:
    """Parts of a known role share it; of an unknown axis one part says nothing of the other."""
    known = factor.variable.role is not AxisRole.UNKNOWN
    variables = [factor.variable if known else Variable() for _ in range(2)]
    return Factor(slow, variables[0]), Factor(fast, variables[1])


def _place_ones(
    factors: Sequence[Factor],
    wide: Sequence[Factor],
    places: Sequence[int],
    marks: Sequence[tuple[int, int]],
    shape: Sequence[Any],
    result: list[Axis | None],
) -> None:
    """Axes of extent 1 keep their factor where the neighbours on both sides are aligned."""
    gaps: dict[int, list[Factor]] = {}
    seen = 0
    for factor in factors:
        if _is_one(factor.size):
            gaps.setdefault(seen, []).append(factor)
        else:
            seen += 1
    old_place = {new: old for old, new in marks}
    passed = 0
    for place in range(len(shape)):
        if result[place] is not None:
            passed += 1
        elif gaps.get(old_place.get(passed, -1)):
            result[place] = Axis((gaps[old_place[passed]].pop(0),))


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _is_zero(size: Any) -> bool:
    return isinstance(size, int) and size == 0
