"""Family ``stationary`` with few taps that are numbers or weights: sums of shifted copies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Window
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["Stencil", "Tap", "Weight", "fraction_of"]

# Σ number·Π operands: the roles of the operands.
Weight = tuple[tuple[float, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Tap:
    """One copy of the input.

    Attributes:
        offset: Position taken less position of the result, by axis of the window.
        weight: What it is multiplied by.
        channels: First and last but one of the channels that it gives, where they differ in their taps.
    """

    offset: tuple[int, ...]
    weight: Weight = ((1.0, ()),)
    channels: tuple[int, int] | None = None


@dataclass(frozen=True)
class Stencil(Kernel):
    """Finite differences, token shift (RWKV, arXiv 2305.13048), temporal shift (TSM, 1811.08383), S²-MLP (2106.07477):

        y[p] = Σ_k w_k·x[p + o_k],    x = 0 outside, or periodic where the window is ``circular``

    Operands: ``input`` x, of any layout; the weights, which broadcast against the result and have extent 1 along the
    axes of positions.

    Attributes:
        rank: Number of axes of the input.
        axes: Its axes of positions, counted from the end.
        taps: The copies.
        weights: (role, axes on which it is wider than 1, counted from the end, number of its axes).
        channel_axis: The axis of channels, from the end, where taps give some of them only; 0 otherwise.
        channels: Their number then.
    """

    family: ClassVar[str] = "stationary"

    rank: int
    axes: tuple[int, ...]
    taps: tuple[Tap, ...]
    weights: tuple[tuple[str, tuple[int, ...], int], ...] = ()
    channel_axis: int = 0
    channels: int = 0

    def properties(self, domain: Domain) -> frozenset[str]:
        assert isinstance(domain, Window)
        past = len(self.axes) == 1 and domain.boundary == "zeros" and all(tap.offset[0] <= 0 for tap in self.taps)
        return frozenset({"linear", "stationary"} | ({"causal"} if past else set()))

    def position_axes(self) -> list[tuple[int, int]]:
        """Axes of positions in the input and in the result."""
        return [(axis, axis) for axis in self.axes]

    def growth(self, domain: Domain) -> tuple[int, ...]:
        """By axis: positions of the result less those of the input."""
        assert isinstance(domain, Window)
        reach = [step * (size - 1) for step, size in zip(domain.dilation, domain.size, strict=True)]
        return tuple(low + high - long for (low, high), long in zip(domain.padding, reach, strict=True))

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """Every tap by indexing, in full."""
        assert isinstance(domain, Window)
        source: Tensor = operands["input"]
        shape = list(source.shape)
        growth = (0,) * len(self.axes) if domain.boundary == "circular" else self.growth(domain)
        for axis, more in zip(self.axes, growth, strict=True):
            shape[axis] += more
        result = source.new_zeros(shape)
        for tap in self.taps:
            copy = source
            for axis, offset in zip(self.axes, tap.offset, strict=True):
                copy = _taken(copy, axis, offset, shape[axis], circular=domain.boundary == "circular")
            copy = copy * self._weight(tap, operands)
            if tap.channels is not None:
                places = torch.arange(shape[self.channel_axis], device=source.device)
                inside = (places >= tap.channels[0]) & (places < tap.channels[1])
                copy = copy * inside.view(-1, *(1,) * (-self.channel_axis - 1))
            result = result + copy
        return result

    @staticmethod
    def _weight(tap: Tap, operands: Operands) -> Any:
        return sum(number * math.prod(operands[role] for role in roles) for number, roles in tap.weight)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """Distinct extents, as long as the farthest tap."""
        assert isinstance(domain, Window)
        return self._sample(domain, [2 + place for place in range(self.rank)], "miniature")

    def _sample(self, domain: Window, extents: list[int], origin: str = "shifts") -> Sample:
        shape = list(extents)
        if self.channel_axis:
            shape[self.channel_axis] = self.channels
        for axis, number in zip(self.axes, range(len(self.axes)), strict=True):
            least = 2 * domain.dilation[number] * (domain.size[number] - 1) + 1
            shape[axis] = max(shape[axis], least)
        if origin == "miniature":
            _made_distinct(shape, fixed=self.channel_axis)
        draws: dict[str, Any] = {"input": Draw(tuple(shape))}
        for role, wide, count in self.weights:
            draws[role] = Draw(tuple(shape[axis] if axis in wide else 1 for axis in range(-count, 0)))
        return Sample(Spec(self, domain, origin, tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """A product and a sum an element for every tap that it has; bytes of operands and results."""
        elements = int(outputs[0].numel())
        share = sum(fraction_of(tap, self.channels) for tap in self.taps)
        moved = [*operands.values(), *outputs]
        return Work(int(2 * elements * share), sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    def describe(self) -> str:
        """``stationary(2·δ[0] − …)``, δ[o] being the copy moved by o."""
        return f"stationary({' + '.join(_shown(tap) for tap in self.taps)})"

    def formula(self) -> list[str]:
        names = ["p"] if len(self.axes) == 1 else [f"p{place}" for place in range(1, len(self.axes) + 1)]
        lines = []
        for tap in self.taps:
            at = ", ".join(
                f"{name} {offset:+d}" if offset else name for name, offset in zip(names, tap.offset, strict=True)
            )
            some = f"    (channels {tap.channels[0]} to {tap.channels[1] - 1})" if tap.channels else ""
            lines.append(f"y[{', '.join(names)}] ← y + ({_text(tap.weight)})·x[{at}]{some}")
        return lines

    @classmethod
    def samples(cls) -> list[Sample]:
        from ._stencil_samples import samples

        return samples()


def fraction_of(tap: Tap, channels: int) -> float:
    """The share of the channels that a tap gives."""
    return 1.0 if tap.channels is None else (tap.channels[1] - tap.channels[0]) / channels


def _shown(tap: Tap) -> str:
    weight = "" if tap.weight == ((1.0, ()),) else f"({_text(tap.weight)})·"
    some = "" if tap.channels is None else f"@{tap.channels[0]}:{tap.channels[1]}"
    return f"{weight}δ[{','.join(map(str, tap.offset))}]{some}"


def _text(weight: Weight) -> str:
    return " + ".join("·".join([f"{number:g}", *roles]) for number, roles in weight)


def _taken(source: Tensor, axis: int, offset: int, count: int, *, circular: bool) -> Tensor:
    """``source`` at 0 + offset … count − 1 + offset along ``axis``; 0 outside."""
    extent, places = source.shape[axis], torch.arange(count, device=source.device) + offset
    if circular:
        return source.index_select(axis, places.remainder(max(extent, 1)))
    slot = (
        torch.zeros_like(source.narrow(axis, 0, 0))
        if not count
        else source.new_zeros([1 if place == axis % source.dim() else size for place, size in enumerate(source.shape)])
    )
    inside = (places >= 0) & (places < extent)
    return torch.cat([source, slot], axis).index_select(axis, torch.where(inside, places, extent))


def _made_distinct(shape: list[int], fixed: int) -> None:
    taken = {shape[fixed]} if fixed else set()
    for place in range(len(shape)):
        if fixed and place == len(shape) + fixed:
            continue
        while shape[place] in taken:
            shape[place] += 1
        taken.add(shape[place])
