"""Extents of axes as exact products, compared to align the two sides of a view."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import lru_cache
from typing import Any

import sympy
import torch
from torch.utils._sympy.functions import CleanDiv, FloorDiv

__all__ = ["ONE", "Monomial", "aligned", "monomial", "product", "quotient"]

# c · Π expression^exponent; exact, except that a floor division is taken to leave no remainder. It does where it makes
# up the shape of a view, since the view would not be valid otherwise.
Monomial = tuple[Fraction, frozenset[tuple[sympy.Expr, int]]]


def product(parts: Iterable[tuple[Monomial, int]]) -> Monomial:
    """Π part^exponent."""
    coefficient = Fraction(1)
    powers: dict[sympy.Expr, int] = {}
    for (number, symbols), exponent in parts:
        coefficient *= number**exponent
        for expression, power in symbols:
            powers[expression] = powers.get(expression, 0) + power * exponent
    return coefficient, frozenset((e, p) for e, p in powers.items() if p)


def _expression(value: Monomial) -> sympy.Expr:
    number, symbols = value
    return sympy.Mul(sympy.Rational(number.numerator, number.denominator), *(e**p for e, p in symbols))


@lru_cache(maxsize=65536)
def _monomial(expression: sympy.Expr) -> Monomial:
    if expression.is_Rational:
        return Fraction(int(expression.p), int(expression.q)), frozenset()
    if expression.is_Mul:
        return product((_monomial(part), 1) for part in expression.args)
    if expression.is_Pow and expression.exp.is_Integer:
        return product([(_monomial(expression.base), int(expression.exp))])
    if isinstance(expression, (FloorDiv, CleanDiv)):
        over, under = expression.args
        return product([(_monomial(over), 1), (_monomial(under), -1)])
    if expression.is_Add:
        exact = sympy.factor_terms(sympy.expand(sympy.Add(*(_expression(_monomial(part)) for part in expression.args))))
        if not exact.is_Add:
            return _monomial(exact)
        number, rest = exact.primitive()
        return Fraction(int(number.p), int(number.q)), frozenset({(rest, 1)})
    return Fraction(1), frozenset({(expression, 1)})


ONE: Monomial = (Fraction(1), frozenset())


def monomial(size: Any) -> Monomial:
    """The extent of an axis (int, SymInt or already a monomial)."""
    if isinstance(size, tuple):
        return size
    if isinstance(size, torch.SymInt):
        return _monomial(size.node.expr)
    return Fraction(int(size)), frozenset()


def _boundaries(sizes: Sequence[Monomial]) -> list[Monomial]:
    """Products of the first 0, 1, 2 … sizes."""
    found = [ONE]
    for size in sizes:
        found.append(product([(found[-1], 1), (size, 1)]))
    return found


def aligned(first: Sequence[Monomial], second: Sequence[Monomial]) -> list[tuple[int, int]]:
    """Pairs of places at which both lists of sizes, none of them 1, have equal products before, or behind, them."""
    ends = (len(first), len(second))
    before = {extent: place for place, extent in enumerate(_boundaries(first))}
    behind = {extent: ends[0] - place for place, extent in enumerate(_boundaries(first[::-1]))}
    found = set()
    for place, extent in enumerate(_boundaries(second)):
        if extent in before:
            found.add((before[extent], place))
    for place, extent in enumerate(_boundaries(second[::-1])):
        if extent in behind:
            found.add((behind[extent], ends[1] - place))
    kept = [(0, 0)]
    for one, two in sorted(found):
        if kept[-1][0] < one < ends[0] and kept[-1][1] < two < ends[1]:
            kept.append((one, two))
    return [*kept, ends]


def quotient(over: Monomial, under: Monomial) -> Monomial | None:
    """The quotient where ``under`` divides ``over`` as it is written."""
    found = product([(over, 1), (under, -1)])
    exact = found[0].denominator == 1 and all(power > 0 for _, power in found[1])
    return found if exact else None
