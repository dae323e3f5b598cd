"""Conditions on positions that say what a mask lets through, and how they are called.

A condition is a set of atoms Σ a·position + c ≥ 0, of which all, or any, must hold. The position ``i//4`` is the number
of the block of four positions that i is in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["Atom", "Condition", "Pattern", "atom"]

# ((label, factor), …), constant: Σ factor·position(label) + constant ≥ 0
Atom = tuple[tuple[tuple[str, int], ...], int]


@dataclass(frozen=True)
class Condition:
    """All of ``atoms`` hold, or with ``either`` at least one of them."""

    atoms: frozenset[Atom]
    either: bool = False

    def inverse(self) -> Condition:
        """¬: −e − 1 ≥ 0 for every e ≥ 0, since positions are integers."""
        flipped = {
            (tuple((label, -factor) for label, factor in terms), -constant - 1) for terms, constant in self.atoms
        }
        return Condition(frozenset(flipped), not self.either)

    def joined(self, other: Condition, either: bool) -> Condition | None:
        """∧, or ∨ with ``either``; None where that is no set of atoms."""
        for one in (self, other):
            if one.either != either and len(one.atoms) > 1:
                return None
        return Condition(self.atoms | other.atoms, either)

    def is_causal(self, query: str, key: str) -> bool:
        """Whether it says j ≤ i and nothing else."""
        return self.atoms == {atom({query: 1, key: -1}, 0)}

    def describe(self, query: str, key: str) -> str:
        """``causal``, ``window of 3 before …``, ``blocks of 4``, ``causal with a prefix of 2``; empty for others."""
        if self.either and len(self.atoms) > 1:
            return self._with_prefix(query, key)
        bounds: dict[int, int] = {}
        blocks: dict[int, set[int]] = {}
        for terms, constant in self.atoms:
            factors = dict(terms)
            one, _, size = next(iter(factors), "").partition("//")
            names = (f"{query}//{size}", f"{key}//{size}") if size else (query, key)
            if set(factors) == {key} and factors[key] == -1 and len(self.atoms) == 1:
                return f"the first {constant + 1}"
            if one not in (query, key) or set(factors) != set(names) or {*factors.values()} != {1, -1}:
                return ""
            side = factors[names[0]]
            if not size:
                bounds[side] = min(constant, bounds.get(side, constant))
            elif constant == 0:
                blocks.setdefault(int(size), set()).add(side)
            else:
                return ""
        return _text_of(bounds, blocks)

    def _with_prefix(self, query: str, key: str) -> str:
        """j ≤ i, or j among the first ones."""
        others = [one for one in self.atoms if one != atom({query: 1, key: -1}, 0)]
        if len(others) == 1 == len(self.atoms) - 1 and others[0][0] == ((key, -1),):
            return f"causal with a prefix of {others[0][1] + 1}"
        return ""


def _text_of(bounds: dict[int, int], blocks: dict[int, set[int]]) -> str:
    """Of bounds on i − j (+1: from below, −1: from above), and likewise on the numbers of their blocks."""
    if len(blocks) > 1:
        return ""
    before, after = bounds.get(-1), bounds.get(1)  # i − j ≤ before, j − i ≤ after
    if blocks:
        ((size, sides),) = blocks.items()
        if sides == {1, -1} and bounds in ({}, {1: 0}):
            return f"causal within blocks of {size}" if bounds else f"blocks of {size}"
        return f"causal in blocks of {size}" if sides == {1} and not bounds else ""
    if before is None:
        return "causal" if after == 0 else f"up to {after} later"
    return f"window of {before} before and {after} after" if after is not None else f"from {before} before"


@dataclass(frozen=True)
class Pattern:
    """Elements of a mask: ``inside`` where ``condition`` holds, else ``outside``."""

    condition: Condition
    inside: float
    outside: float

    def where(self, test: Callable[[float], bool]) -> Condition | None:
        """Where the elements pass a test; None where all do, or none does."""
        one, other = test(self.inside), test(self.outside)
        if one == other:
            return None
        return self.condition if one else self.condition.inverse()


def atom(terms: dict[str, int], constant: int) -> Atom:
    """Σ factor·position + constant ≥ 0."""
    return tuple(sorted((label, factor) for label, factor in terms.items() if factor)), constant
