"""Library lowering of ``Stencil``: slices, pads or rolls of the input, added up."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch

from ...ir.domain import Window
from ...ir.kernel import Spec
from ...ir.stencil import Stencil, Tap, Weight
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Stencil

_NAMES: dict[str, Any] = {
    "pad": torch._C._nn.pad,
    "roll": torch.roll,
    "cat": torch.cat,
    "add": torch.add,
    "addcmul": torch.addcmul,
    "zeros_like": torch.zeros_like,
}
_PLUS, _MINUS = ((1.0, ()),), ((-1.0, ()),)


def lower(spec: Spec) -> Lowered:
    """One Python function: weights first, then for each part of the channels the sum of its taps."""
    kernel, window = spec.kernel, spec.domain
    assert isinstance(kernel, Stencil)
    assert isinstance(window, Window)
    writer = _Writer(kernel, window)
    source = writer.source(spec.operands)
    scope = dict(_NAMES)
    exec(compile(source, "<itnet shifts>", "exec"), scope)
    arguments = ", ".join(spec.operands)
    return Lowered(spec.operands, f"integral({arguments})", {"integral": scope["integral"]}, text=source)


class _Writer:
    """Writes the body; ``x`` is the input, ``z`` the input with zeros around it, ``y`` the sum."""

    def __init__(self, kernel: Stencil, window: Window) -> None:
        self.kernel, self.window = kernel, window
        self.growth = kernel.growth(window)
        self.lines: list[str] = []

    def source(self, operands: tuple[str, ...]) -> str:
        """The function."""
        kernel = self.kernel
        if not kernel.channel_axis:
            self._part("input", kernel.taps)
            result = "y"
        else:
            marks = {mark for tap in kernel.taps for mark in tap.channels or (0, kernel.channels)}
            places = sorted(marks | {0, kernel.channels})
            names = []
            for number, (low, high) in enumerate(pairwise(places)):
                inside = [tap for tap in kernel.taps if (tap.channels or (low, high))[0] <= low < high]
                taps = tuple(tap for tap in inside if (tap.channels or (low, high))[1] >= high)
                self._part(f"input.narrow({kernel.channel_axis}, {low}, {high - low})", taps)
                self.lines.append(f"y{number} = y")
                names.append(f"y{number}")
            result = f"cat(({', '.join(names)}), {kernel.channel_axis})"
        body = "".join(f"    {line}\n" for line in [*self.lines, f"return {result}"])
        return f"def integral({', '.join(operands)}):\n{body}"

    def _part(self, source: str, taps: tuple[Tap, ...]) -> None:
        """y = Σ over ``taps`` of what they take of ``source``."""
        put = self.lines.append
        put(f"x = {source}")
        if not taps:
            put(f"y = zeros_like({self._copy(Tap((0,) * len(self.kernel.axes)))})")
            return
        padded = [] if self.window.boundary == "circular" else [tap for tap in taps if self._is_padded(tap)]
        if len(padded) > 1:
            put(f"z = pad(x, {self._flat(list(self.window.padding))})")
        order = sorted(taps, key=lambda tap: tap.weight != _PLUS)  # one that need not be multiplied first
        for number, tap in enumerate(order):
            copy = self._of_padded(tap) if len(padded) > 1 and tap in padded else self._copy(tap)
            self._add(copy, tap.weight, first=number == 0)

    def _add(self, copy: str, weight: Weight, *, first: bool) -> None:
        put = self.lines.append
        if weight == _PLUS:
            put(f"y = {copy}" if first else f"y = y + {copy}")
        elif weight == _MINUS:
            put(f"y = -{copy}" if first else f"y = y - {copy}")
        elif not any(roles for _, roles in weight):
            number = sum(each for each, _ in weight)
            put(f"y = {copy} * {number!r}" if first else f"y = add(y, {copy}, alpha={number!r})")
        else:
            put(f"y = {copy} * {_written(weight)}" if first else f"y = addcmul(y, {copy}, {_written(weight)})")

    def _sides(self, tap: Tap) -> list[tuple[int, int]]:
        """Positions added before and behind, by axis; less than 0 where some are left out."""
        return [(-offset, more + offset) for offset, more in zip(tap.offset, self.growth, strict=True)]

    def _is_padded(self, tap: Tap) -> bool:
        return any(side > 0 for pair in self._sides(tap) for side in pair)

    def _copy(self, tap: Tap) -> str:
        """``x`` moved by the tap."""
        sides, axes = self._sides(tap), self.kernel.axes
        if self.window.boundary == "circular":
            moved = [(-offset, axis) for offset, axis in zip(tap.offset, axes, strict=True) if offset]
            shifts, dims = (tuple(each) for each in zip(*moved, strict=True)) if moved else ((), ())
            return f"roll(x, {shifts}, {dims})" if moved else "x"
        if all(side == 0 for pair in sides for side in pair):
            return "x"
        if self._is_padded(tap):
            return f"pad(x, {self._flat(sides)})"
        return self._cut("x", sides)

    def _of_padded(self, tap: Tap) -> str:
        """What the tap takes of ``z``."""
        sides = [
            (own - low, more - high)
            for (own, more), (low, high) in zip(self._sides(tap), self.window.padding, strict=True)
        ]
        return self._cut("z", sides)

    def _cut(self, name: str, sides: list[tuple[int, int]]) -> str:
        """``name`` without ``-sides`` positions at either end of its axes of positions."""
        by_axis = dict(zip(self.kernel.axes, sides, strict=True))
        first = min(by_axis)
        cuts = []
        for axis in range(first, 0):
            low, high = by_axis.get(axis, (0, 0))
            cuts.append(f"{-low or ''}:{high or ''}")
        return f"{name}[..., {', '.join(cuts)}]"

    def _flat(self, sides: list[tuple[int, int]]) -> tuple[int, ...]:
        """Sides as ``pad`` takes them: from the last axis on."""
        by_axis = dict(zip(self.kernel.axes, sides, strict=True))
        return tuple(side for axis in range(-1, min(by_axis) - 1, -1) for side in by_axis.get(axis, (0, 0)))


def _written(weight: Weight) -> str:
    """A sum of products of operands."""
    terms = []
    for number, roles in weight:
        factors = list(roles) if number == 1.0 and roles else [repr(number), *roles]
        terms.append(" * ".join(factors))
    return f"({' + '.join(terms)})"
