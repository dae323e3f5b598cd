"""Family ``stationary`` with a kernel as long as the sequence: convolution by Fourier transforms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Grid, Past
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["LongConvolution"]


@dataclass(frozen=True)
class LongConvolution(Kernel):
    """A convolution with an implicit or global filter (S4, arXiv 2111.00396; Hyena, 2302.10866; GFNet, 2107.00645):

        y[…, t] = N^e·Σ_s k[…, (t − s) mod N]·u[…, s]       a circle of N positions (a torus for several axes)
        y[…, t] = N^e·Σ_{s ≤ t} k[…, t − s]·u[…, s]         with ``causal``, N = 2·L for u of length L, t < L

    Operands: ``input`` u and ``filter`` k, cut or padded with zeros to N; ``period``, the list of N by axis (not where
    causal); with ``spectrum`` the filter is the inverse transform (``irfft`` where real) of the operand given.

    Attributes:
        axes: Counted from the end.
        real: Whether input and result are real.
        spectrum: Whether the filter is given as its transform.
        causal: Whether the past alone counts.
        exponent: e: 0, or what norms other than ``backward`` leave.
    """

    family: ClassVar[str] = "stationary"

    axes: tuple[int, ...] = (-1,)
    real: bool = True
    spectrum: bool = False
    causal: bool = False
    exponent: float = 0.0

    def properties(self, domain: Domain) -> frozenset[str]:
        """Linear in the input; stationary, which is tested by the circle (``_stationary`` moves windows only)."""
        return frozenset({"linear"})

    def lengths(self, operands: Operands) -> list[int]:
        """N of every axis."""
        if self.causal:
            return [2 * int(operands["input"].shape[self.axes[0]])]
        return [int(length) for length in operands["period"]]

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """y."""
        return self.apply_matrix(domain, self.kernel_matrix(domain, **operands), **operands)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, (…, P, P), P = Π N, or L where causal, with the other axes of the filter in front."""
        lengths, k = self.lengths(operands), operands["filter"]
        if self.spectrum:
            transform = torch.fft.irfftn if self.real else torch.fft.ifftn
            k = transform(k, lengths, self.axes)
        if self.causal:
            size = operands["input"].shape[self.axes[0]]
            places = torch.arange(size, device=k.device)
            distance = places[:, None] - places[None, :]
            taps = _flat(k, self.axes, [max(size, 1)])
            matrix = taps[..., distance.clamp_min(0)] * (distance >= 0)
        else:
            matrix = _flat(k, self.axes, lengths)[..., _differences(lengths, k.device)]
        return matrix * math.prod(lengths) ** self.exponent if self.exponent else matrix

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """K·u with the axes where they were."""
        source = operands["input"]
        lengths = [source.shape[self.axes[0]]] if self.causal else self.lengths(operands)
        flat = _flat(source, self.axes, lengths).unsqueeze(-1)
        result = (matrix.to(torch.promote_types(matrix.dtype, flat.dtype)) @ flat.to(matrix.dtype)).squeeze(-1)
        return result.unflatten(-1, lengths).movedim(tuple(range(-len(self.axes), 0)), self.axes)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        depth = max(-axis for axis in self.axes)
        return self._sample((3, 5, 4, 7, 2)[:depth], [5 + number for number in range(len(self.axes))])

    def _sample(self, shape: Sequence[int], period: Sequence[int], filter: Sequence[int] = ()) -> Sample:
        taps = list(filter or shape)
        if self.spectrum:
            for axis, length in zip(self.axes, period, strict=True):
                taps[axis] = length // 2 + 1 if self.real and axis == self.axes[-1] else length
        kind = "float" if self.real else "complex"
        draws: dict[str, Any] = {
            "input": Draw(tuple(shape), kind),
            "filter": Draw(tuple(taps), "complex" if self.spectrum else kind),
        }
        if not self.causal:
            draws["period"] = list(period)
        domain = Past() if self.causal else Grid(len(self.axes))
        return Sample(Spec(self, domain, "long convolution", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Three transforms of 5·N·log₂ N flops and a product of 6; bytes of operands and results."""
        lengths = self.lengths(operands)
        rows = int(outputs[0].numel()) // max(math.prod(outputs[0].shape[axis] for axis in self.axes), 1)
        points = math.prod(lengths)
        flops = rows * points * (15 * math.ceil(math.log2(max(points, 2))) + 6)
        moved = [operands["input"], operands["filter"], *outputs]
        return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        past = cls(causal=True)
        return [
            past._sample((2, 3, 7), (), (3, 7)),
            past._sample((2, 63), (), (63,)),
            past._sample((2, 1), (), (1,)),
            cls(axes=(-2,), causal=True)._sample((2, 7, 3), (), (7, 3)),
            cls()._sample((2, 3, 7), [7], (3, 7)),
            cls()._sample((2, 7), [12], (5,)),
            cls()._sample((2, 7), [5], (9,)),
            cls(exponent=0.5)._sample((2, 6), [6]),
            cls(spectrum=True)._sample((2, 3, 7), [7], (3, 7)),
            cls(axes=(-3, -2), spectrum=True)._sample((2, 5, 6, 3), [5, 6]),
            cls(axes=(-2, -1))._sample((2, 5, 7), [5, 7], (3, 2)),
            cls(real=False)._sample((2, 7), [7]),
            cls(real=False, spectrum=True, exponent=-0.5)._sample((2, 7), [9]),
        ]


def _flat(tensor: Tensor, axes: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """The axes last, cut or padded with zeros to ``lengths``, and merged."""
    places = tuple(range(-len(axes), 0))
    tensor = tensor.movedim(tuple(axes), places)
    for place, length in zip(places, lengths, strict=True):
        tensor = tensor.narrow(place, 0, min(length, tensor.shape[place]))
    short = [(0, length - tensor.shape[place]) for place, length in zip(places, lengths, strict=True)]
    return torch.nn.functional.pad(tensor, [side for pair in reversed(short) for side in pair]).flatten(-len(axes))


def _differences(lengths: Sequence[int], device: torch.device) -> Tensor:
    """[P, P]: flat place of (t − s) mod N by axis."""
    found = torch.zeros((1, 1), dtype=torch.long, device=device)
    for length in lengths:
        places = torch.arange(length, device=device)
        apart = (places[:, None] - places[None, :]) % max(length, 1)
        rows, columns = found.shape
        found = found[:, None, :, None] * length + apart[None, :, None, :]
        found = found.reshape(rows * length, columns * length)
    return found
