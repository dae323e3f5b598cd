"""Labels: which index of a result reads which axis of what it was computed from, followed backwards through views.

    tracer = Tracer()
    axes = tracer.fresh(shape)            # one label an axis; none where the extent is the constant 1
    node, axes = tracer.back(node, axes)  # through a view: the axes of its source in the same labels

An axis is a tuple of labels, slowest first. Where a view merged axes their label is taken apart; what matters is the
order in memory and the exact product of extents, so that equal sizes cannot be confused. A label that a source lacks
is one that it does not depend on (it was expanded).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import count
from typing import Any

import torch
from torch.fx import Node

from ...ir.layout import shown
from ..axes.sizes import ONE, Monomial, monomial, product, quotient
from ..match import bind, rank, shape_of, value_of
from ..operators import operator_name

__all__ = ["Axes", "Tracer", "is_one", "letters"]

Axis = tuple[str, ...]
Axes = tuple[Axis, ...]

_PERMUTATIONS = frozenset("permute transpose t mT numpy_T T swapaxes swapdims movedim moveaxis".split())
_RESHAPES = frozenset("view reshape _unsafe_view view_as reshape_as flatten unflatten ravel _reshape_alias".split())
_EXPANSIONS = frozenset("expand expand_as broadcast_to".split())
_COPIES = frozenset("contiguous clone alias lift_fresh_copy lift_fresh".split())
_CASTS = frozenset("to _to_copy type_as float double half bfloat16".split())
_PRIMES = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37)


def is_one(size: Any) -> bool:
    """Whether an extent is the constant 1."""
    return isinstance(size, int) and size == 1


def letters(
    batch: Iterable[str], queries: Iterable[str], keys: Iterable[str], channels: Iterable[str], features: Iterable[str]
) -> dict[str, str]:
    """A name for each label by what it counts: b h g … i … j … c … e …, numbered where there are several."""
    names = {label: "bhgfda"[place] if place < 6 else f"b{place}" for place, label in enumerate(batch)}
    for letter, group in zip("ijce", map(list, (queries, keys, channels, features)), strict=True):
        names |= {label: letter if len(group) == 1 else f"{letter}{place + 1}" for place, label in enumerate(group)}
    return names


class Tracer:
    """Labels of one search."""

    def __init__(self) -> None:
        self._extents: dict[str, Monomial] = {}
        self._parts: dict[str, Axis] = {}
        self._names = count()

    def label(self, extent: Any) -> Axis:
        """An axis with a label of its own; none for the constant 1."""
        if monomial(extent) == ONE:
            return ()
        name = f"x{next(self._names)}"
        self._extents[name] = monomial(extent)
        return (name,)

    def fresh(self, shape: Iterable[Any]) -> Axes:
        """Axes with labels of their own."""
        return tuple(self.label(size) for size in shape)

    def resolve(self, axes: Iterable[Sequence[str]]) -> Axes:
        """The axes with every label that was taken apart replaced by its parts."""
        return tuple(tuple(part for label in axis for part in self._resolved(label)) for axis in axes)

    def _resolved(self, label: str) -> Axis:
        if label not in self._parts:
            return (label,)
        return tuple(part for inner in self._parts[label] for part in self._resolved(inner))

    def flat(self, axes: Iterable[Sequence[str]]) -> Axis:
        """All labels, resolved, slowest first."""
        return tuple(label for axis in self.resolve(axes) for label in axis)

    def fixed(self, label: str) -> int | None:
        """The extent of a label where it is a number."""
        number, symbols = self._extents[label]
        return int(number) if not symbols and number.denominator == 1 else None

    def extent(self, label: str) -> Monomial:
        """The extent of a label."""
        return self._extents[label]

    def text(self, axes: Axes, names: Mapping[str, str]) -> str:
        """Axes as a layout is written (see ``ir.layout``), by the names of their labels."""
        return shown(tuple(tuple(names[label] for label in axis) for axis in self.resolve(axes)))

    def sizes(self, layouts: Iterable[Axes], names: Mapping[str, str]) -> tuple[tuple[str, int], ...]:
        """Fixed extents, by name, of the labels that occur in merged axes."""
        merged = {label for axes in layouts for axis in self.resolve(axes) if len(axis) > 1 for label in axis}
        found = {names[label]: self.fixed(label) for label in merged}
        return tuple(sorted((name, size) for name, size in found.items() if size is not None))

    def back(self, node: Node, axes: Axes) -> tuple[Node, Axes] | None:
        """The source of a view, copy or cast and its axes; None where the node is nothing of the kind."""
        if node.op != "call_function":
            return None
        name, given = operator_name(node), bind(node)
        source = given.get("self", given.get("tensor"))
        if not isinstance(source, Node) or not isinstance(value_of(source), torch.Tensor):
            return None
        axes = self.resolve(axes)
        found: Axes | None = None
        if name in _COPIES or (name in _CASTS and value_of(source).dtype.is_floating_point):
            found = axes if rank(source) == len(axes) else None
        elif name in _PERMUTATIONS:
            found = _permuted(node, source, axes)
        elif name in _RESHAPES and value_of(source).dtype == value_of(node).dtype:
            found = self.regrouped(axes, shape_of(source))
        elif name in ("slice", "narrow"):
            found = axes if shape_of(source) == shape_of(node) and given.get("start") in (None, 0) else None
        elif name == "unsqueeze":
            place = given["dim"] % len(axes)
            found = axes[:place] + axes[place + 1 :]
        elif name == "squeeze":
            found = _unsqueezed(source, given.get("dim"), axes)
        elif name in _EXPANSIONS:
            found = _unexpanded(source, axes)
        elif name == "repeat_interleave":
            found = self._not_interleaved(source, given, axes)
        elif name in ("repeat", "tile"):
            found = self._not_repeated(source, given.get("repeats", given.get("dims")), axes)
        return None if found is None else (source, found)

    def regrouped(self, axes: Axes, shape: Sequence[Any]) -> Axes | None:
        """The labels of ``axes``, in their order, over axes of ``shape``; None where no whole factors fit."""
        left = list(self.flat(axes))
        # Extents that are whole numbers although they are written as fractions: (s + 31)/32.
        whole = {monomial(size) for size in shape} | set(self._extents.values())

        def divided(over: Monomial, under: Monomial) -> Monomial | None:
            found = product([(over, 1), (under, -1)])
            return found if found in whole else quotient(over, under)

        result: list[Axis] = []
        for size in reversed(shape):
            need, taken = monomial(size), []
            if need[0] == 0:
                return None
            while need != ONE:
                if not left:
                    return None
                label = left.pop()
                have = self._extents[label]
                if (rest := divided(need, have)) is not None:
                    taken.append(label)
                    need = rest
                elif (rest := divided(have, need)) is not None:
                    slow, fast = self._split(label, rest, need)
                    left.append(slow)
                    taken.append(fast)
                    need = ONE
                else:
                    return None
            result.append(tuple(reversed(taken)))
        return None if left else tuple(reversed(result))

    def _split(self, label: str, slow: Monomial, fast: Monomial) -> tuple[str, str]:
        parts = (*self.label(slow), *self.label(fast))
        self._parts[label] = parts
        return parts[0], parts[1]

    def _not_interleaved(self, source: Node, given: dict[str, Any], axes: Axes) -> Axes | None:
        times, place = given.get("repeats"), given.get("dim")
        if not isinstance(times, int) or not isinstance(place, int):
            return None
        place %= len(axes)
        both = self.regrouped((axes[place],), (shape_of(source)[place], times))
        return None if both is None else (*axes[:place], both[0], *axes[place + 1 :])

    def _not_repeated(self, source: Node, times: Any, axes: Axes) -> Axes | None:
        if not isinstance(times, (list, tuple)) or len(times) != len(axes):
            return None
        result = []
        first = len(axes) - rank(source)
        for place, size in enumerate(shape_of(source), start=first):
            axis: Axis | None = axes[place]
            if is_one(size):
                axis = ()
            elif not is_one(times[place]):
                both = self.regrouped((axes[place],), (times[place], size)) if isinstance(times[place], int) else None
                axis = None if both is None else both[1]
            if axis is None:
                return None
            result.append(axis)
        return tuple(result)

    def aligned(self, source: Node, axes: Axes) -> Axes | None:
        """Axes of an operand that was broadcast to ``axes``; None where its extents do not fit."""
        return _unexpanded(source, self.resolve(axes))


def _permuted(node: Node, source: Node, axes: Axes) -> Axes:
    """The order is read off by running the operator on extents that are all different."""
    sizes = _PRIMES[: rank(source)]
    shape = node.target(torch.empty(sizes, device="meta"), *node.args[1:], **node.kwargs).shape  # type: ignore[operator]
    found: list[Axis] = [()] * len(axes)
    for axis, size in zip(axes, shape, strict=True):
        found[sizes.index(size)] = axis
    return tuple(found)


def _unsqueezed(source: Node, dims: Any, axes: Axes) -> Axes | None:
    shape = shape_of(source)
    places = range(len(shape)) if dims is None else dims if isinstance(dims, (list, tuple)) else [dims]
    gone = {place % len(shape) for place in places if is_one(shape[place])}
    if len(shape) - len(gone) != len(axes):
        return None
    kept = iter(axes)
    return tuple(() if place in gone else next(kept) for place in range(len(shape)))


def _unexpanded(source: Node, axes: Axes) -> Axes | None:
    shape = shape_of(source)
    if len(shape) > len(axes):
        return None
    return tuple(() if is_one(size) else axis for size, axis in zip(shape, axes[len(axes) - len(shape) :], strict=True))
