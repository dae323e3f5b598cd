"""What an axis is to the analysis of ``axes``: a product of factors with roles, aligned across views exactly.

An axis that a view has merged keeps its factors, slowest first, so that a later view can take it apart again. Each
factor points to a role variable; operators that relate axes share the variable or settle it, and so a role found late
(the first consumer of a model input) is known wherever the axis went before.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import CleanDiv, FloorDiv

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


# ── Sizes ────────────────────────────────────────────────────────────────────────────────────────────────────────────

# c · Π expression^exponent; exact, except that a floor division is taken to leave no remainder. It does where it makes
# up the shape of a view, since the view would not be valid otherwise.
Monomial = tuple[Fraction, frozenset[tuple[sympy.Expr, int]]]


def _product(parts: Iterable[tuple[Monomial, int]]) -> Monomial:
    coefficient, powers = Fraction(1), {}
    for (number, symbols), exponent in parts:
        coefficient *= number**exponent
        for expression, power in symbols:
            powers[expression] = powers.get(expression, 0) + power * exponent
    return coefficient, frozenset((e, p) for e, p in powers.items() if p)


def _expression(monomial: Monomial) -> sympy.Expr:
    number, symbols = monomial
    return sympy.Mul(sympy.Rational(number.numerator, number.denominator), *(e**p for e, p in symbols))


@lru_cache(maxsize=65536)
def _monomial(expression: sympy.Expr) -> Monomial:
    if expression.is_Rational:
        return Fraction(int(expression.p), int(expression.q)), frozenset()
    if expression.is_Mul:
        return _product((_monomial(part), 1) for part in expression.args)
    if expression.is_Pow and expression.exp.is_Integer:
        return _product([(_monomial(expression.base), int(expression.exp))])
    if isinstance(expression, (FloorDiv, CleanDiv)):
        over, under = expression.args
        return _product([(_monomial(over), 1), (_monomial(under), -1)])
    if expression.is_Add:
        exact = sympy.factor_terms(sympy.expand(sympy.Add(*(_expression(_monomial(part)) for part in expression.args))))
        if not exact.is_Add:
            return _monomial(exact)
        number, rest = exact.primitive()
        return Fraction(int(number.p), int(number.q)), frozenset({(rest, 1)})
    return Fraction(1), frozenset({(expression, 1)})


ONE: Monomial = (Fraction(1), frozenset())


def _size(size: Any) -> Monomial:
    if isinstance(size, tuple):
        return size
    if isinstance(size, torch.SymInt):
        return _monomial(size.node.expr)
    return Fraction(int(size)), frozenset()


def has_extent(one: Axis, size: Any) -> bool:
    """Whether the extent of an axis is ``size``, as expressions."""
    return _product((_size(factor.size), 1) for factor in one.factors) == _size(size)


def _boundaries(sizes: Sequence[Monomial]) -> list[Monomial]:
    """Products of the first 0, 1, 2 … sizes."""
    found = [ONE]
    for size in sizes:
        found.append(_product([(found[-1], 1), (size, 1)]))
    return found


def _aligned(first: Sequence[Monomial], second: Sequence[Monomial]) -> list[tuple[int, int]]:
    """Pairs of places at which both lists of sizes, none of them 1, have equal products before, or behind, them."""
    ends = (len(first), len(second))
    before = {product: place for place, product in enumerate(_boundaries(first))}
    behind = {product: ends[0] - place for place, product in enumerate(_boundaries(first[::-1]))}
    found = {(0, 0), ends}
    for place, product in enumerate(_boundaries(second)):
        if product in before:
            found.add((before[product], place))
    for place, product in enumerate(_boundaries(second[::-1])):
        if product in behind:
            found.add((behind[product], ends[1] - place))
    kept = [(0, 0)]
    for one, two in sorted(found):
        if one > kept[-1][0] and two > kept[-1][1]:
            kept.append((one, two))
    while len(kept) > 1 and kept[-1] != ends:
        kept.pop()
    return kept if kept[-1] == ends else [(0, 0), ends]


def regroup(axes: Sequence[Axis], shape: Sequence[Any]) -> list[Axis]:
    """Axes of a view with ``shape``: groups of factors and of new axes with equal products belong together."""
    factors = [factor for one in axes for factor in one.factors]
    wide = [factor for factor in factors if not _is_one(factor.size)]
    places = [place for place, size in enumerate(shape) if not _is_one(size)]
    result: list[Axis | None] = [None] * len(shape)
    if any(_is_zero(size) for size in (*shape, *(factor.size for factor in wide))):
        return [axis(size) for size in shape]
    marks = _aligned([_size(factor.size) for factor in wide], [_size(shape[place]) for place in places])
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
        need, taken = _size(size), []
        while need != ONE:
            if not left:
                return None
            factor = left.pop()
            have = _size(factor.size)
            if (rest := _quotient(need, have)) is not None:
                taken.append(factor)
                need = rest
            elif (rest := _quotient(have, need)) is not None:
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


def _quotient(over: Monomial, under: Monomial) -> Monomial | None:
    """The quotient where ``under`` divides ``over`` as it is written."""
    found = _product([(over, 1), (under, -1)])
    exact = found[0].denominator == 1 and all(power > 0 for _, power in found[1])
    return found if exact else None


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
