"""Gradients of a run, taken to be compared with those of another run."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .deadline import TooSlow, backward_limited

__all__ = ["Gradients", "slope_error"]

# Seconds that a backward pass is given, and where a run in float64 may decide.
_SECONDS, _MORE_SECONDS = 10.0, 60.0
# Numbers of a projection.
_KEPT = 4096


class Gradients:
    """The tensors with respect to which gradients are compared; none, with a note, where that costs too much.

    With ``sketched`` the gradients of more than ``limit`` bytes of parameters are projected, one after the other, to a
    few thousand numbers each: of two that differ the projections differ as much, up to chance.
    """

    def __init__(self, root: nn.Module, limit: int, *, sketched: bool = False, patient: bool = False) -> None:
        self.seconds = _MORE_SECONDS if patient else _SECONDS
        self.parameters = [p for p in root.parameters() if p.requires_grad]
        size = sum(p.numel() * p.element_size() for p in self.parameters)
        self.sketched = sketched and size > limit
        self.note = ""
        if size > limit and not sketched:
            self.note = f"{size / 2**20:.0f} MB of parameters (limit {limit // 2**20})"
        elif any(p._backward_hooks for p in self.parameters):
            self.note = "parameters have hooks"

    def of(self, result: list[Any], inputs: list[Tensor]) -> list[Tensor | None] | None:
        """Gradients of a fixed combination of all outputs; None where there is nothing to differentiate."""
        outputs = [t for t in result if isinstance(t, Tensor) and t.requires_grad and t.numel()]
        sources = [*self.parameters, *inputs]
        if self.note or not outputs or not sources:
            return None
        weights = [_weights(t.numel()).to(t).view(t.shape) for t in outputs]
        try:
            with backward_limited(outputs, self.seconds):
                if self.sketched:
                    return _sketched_gradients(outputs, sources, weights)
                return list(torch.autograd.grad(outputs, sources, weights, allow_unused=True))
        except TooSlow:
            self.note = f"the backward takes more than {self.seconds:.0f} s"
            return None
        except Exception as error:
            # Some models have a backward in train mode only; there is nothing to compare with then.
            self.note = f"the backward fails: {type(error).__name__}"
            return None


def _sketched_gradients(
    outputs: Sequence[Tensor], sources: Sequence[Tensor], weights: Sequence[Tensor]
) -> list[Tensor | None]:
    """Projections of the gradients, none of which is held for longer than it takes to make one."""
    found: dict[int, Tensor] = {}
    passes: set[int] = set()  # this one: parameters are shared, and another one may run in another thread

    def begin(_: Tensor) -> None:
        passes.add(torch._C._current_graph_task_id())

    def keep(place: int, gradient: Tensor) -> Tensor | None:
        if torch._C._current_graph_task_id() not in passes:
            return None
        found[place] = _projected(gradient.to_dense() if gradient.is_sparse else gradient)
        return None if gradient.is_sparse else gradient.new_zeros(()).expand(gradient.shape)

    with contextlib.ExitStack() as hooks:
        for output in outputs:
            hooks.callback(output.register_hook(begin).remove)
        for place, source in enumerate(sources):
            hooks.callback(source.register_hook(partial(keep, place)).remove)
        torch.autograd.grad(outputs, sources, weights, allow_unused=True)
    return [found.get(place) for place in range(len(sources))]


def _projected(gradient: Tensor) -> Tensor:
    """Sums of rows of ``_KEPT`` numbers with factors of mean 0 and variance 1, then what fills no row."""
    flat = gradient.reshape(-1)
    rows = flat.numel() // _KEPT
    whole = flat[: rows * _KEPT].view(rows, _KEPT)
    return torch.cat([(_weights(rows) * rows**0.5).to(flat) @ whole, flat[rows * _KEPT :]])


def _weights(number: int) -> Tensor:
    """√(2/n)·cos(2π·φ·k²), k < n = ``number``, φ the golden ratio: without a sign in common, and the same every time.

    A sum that is constant (softmax) has a slope with them, and each output the same share whatever its size is.
    """
    turns = torch.arange(number, dtype=torch.float64).square() * ((1 + 5**0.5) / 2)
    return (2 * math.pi * turns.frac()).cos() * (2 / max(number, 1)) ** 0.5


def slope_error(value: list[Tensor | None], expected: list[Tensor | None]) -> float:
    """Relative L2 difference of all gradients as one vector; infinite where one has a gradient that the other lacks."""
    difference = norm = 0.0
    for a, b in zip(value, expected, strict=True):
        if (a is None) != (b is None):
            return float("inf")
        if a is not None and b is not None and not torch.equal(a, b):
            same = (a == b) | (torch.isnan(a) & torch.isnan(b))  # infinities too
            difference += float((a - b).masked_fill(same, 0).abs().square().sum())
        if b is not None:
            norm += float(b.nan_to_num(0.0, 0.0, 0.0).abs().square().sum())
    if difference != difference:
        return float("inf")
    return (difference**0.5) / max(norm**0.5, 1e-30) if difference else 0.0
