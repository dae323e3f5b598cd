"""Family ``dense``: values taken at computed positions and interpolated there, ``grid_sample``."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .dense import cubic_convolution
from .domain import Domain, Grid
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["OUTSIDE", "WEIGHTS", "Sampled"]

# In the order of the numbers that ``torch.grid_sampler`` takes for them.
WEIGHTS = ("linear", "nearest", "cubic")
OUTSIDE = ("zeros", "border", "reflection")
_TAPS = {"linear": 2, "nearest": 1, "cubic": 4}


@dataclass(frozen=True)
class Sampled(Kernel):
    """y[b, c, p] = Σ_p' Π_axis w(u[b, p] − p')·x[b, c, p'], where the positions u are computed.

    The sampler of spatial transformers (Jaderberg et al. 2015, eq. 3) and of deformable attention (arXiv 2010.04159).

    Operands: ``input`` (B, C, A₁ … A_r); ``positions`` (B, O₁ … O_r, r), −1 … 1 from one end of an axis to the other,
    the last axis first.

    Attributes:
        weights: ``linear``, ``nearest`` or ``cubic`` (A = −0.75, two axes).
        outside: What there is beyond the ends: ``zeros``, ``border`` (the last position) or ``reflection``.
        align_corners: Whether −1 and 1 are the centres of the corner positions, not their outer edges.
    """

    family: ClassVar[str] = "dense"

    weights: str = "linear"
    outside: str = "zeros"
    align_corners: bool = False

    def __post_init__(self) -> None:
        if self.weights not in WEIGHTS or self.outside not in OUTSIDE:
            raise ValueError(f"{self.weights!r} is none of {WEIGHTS}, or {self.outside!r} none of {OUTSIDE}")

    def properties(self, domain: Domain) -> frozenset[str]:
        return frozenset({"linear"} if self.outside == "zeros" else {"linear", "normalised"})

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """The matrix of each sample times its values."""
        matrix = self.kernel_matrix(domain, **operands)
        return self.apply_matrix(domain, matrix, **operands)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """[B, Π O, Π A]."""
        assert isinstance(domain, Grid)
        source, positions = operands["input"], operands["positions"].flatten(1, -2)
        matrix = source.new_ones(*positions.shape[:2], 1)
        for axis, extent in enumerate(source.shape[2:]):
            along = self._along(positions[..., domain.rank - 1 - axis], extent)
            matrix = (matrix.unsqueeze(-1) * along.unsqueeze(-2)).flatten(2)
        return matrix

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """What the layer does with ``kernel_matrix``: its product with the flattened positions."""
        outputs = operands["positions"].shape[1:-1]
        return (operands["input"].flatten(2) @ matrix.mT).unflatten(-1, outputs)

    def _along(self, position: Tensor, extent: int) -> Tensor:
        """[B, P, A]: weights along one axis."""
        span = extent - 1 if self.align_corners else extent
        place = (position + 1) / 2 * span + (extent - 1 - span) / 2
        sources = torch.arange(extent, device=position.device)
        if self.weights == "cubic":
            first = place.detach().floor()
            offsets = torch.arange(-1, 3, device=position.device)
            weights = cubic_convolution((place - first).unsqueeze(-1).sub(offsets).abs(), -0.75)
            taps = self._inside(first.unsqueeze(-1) + offsets, extent).round()
            return ((taps.unsqueeze(-1) == sources) * weights.unsqueeze(-1)).sum(-2)
        place = self._inside(place, extent).unsqueeze(-1)
        if self.weights == "nearest":
            return (place.round() == sources).to(position.dtype)
        return (1 - (place - sources).abs()).clamp(min=0)

    def _inside(self, place: Tensor, extent: int) -> Tensor:
        """Places beyond the ends brought inside."""
        if self.outside == "zeros":
            return place
        if self.outside == "reflection":
            low, span = (0.0, extent - 1.0) if self.align_corners else (-0.5, float(extent))
            if span == 0:
                return torch.zeros_like(place)
            distance = (place - low).abs()
            turns, rest = (distance / span).detach().floor(), distance.remainder(span)
            place = torch.where(turns.remainder(2) == 0, rest, span - rest) + low
        return place.clamp(0, extent - 1)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        assert isinstance(domain, Grid)
        return _sample(self, domain.rank, (2, 3, *range(4, 4 + domain.rank)), tuple(range(7, 7 + domain.rank)))

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """A multiply-add for each of the neighbours of each output."""
        assert isinstance(domain, Grid)
        taps = 0 if self.weights == "nearest" else _TAPS[self.weights] ** domain.rank
        moved = [operands["input"], operands["positions"], *outputs]
        total = sum(prod(tensor.shape) * tensor.element_size() for tensor in moved)
        return Work(2 * taps * prod(outputs[0].shape), total)

    @classmethod
    def samples(cls) -> list[Sample]:
        found = []
        for outside in OUTSIDE:
            for aligned in (False, True):
                found += [
                    _sample(cls(weights, outside, aligned), 2, (2, 3, 4, 7), (5, 6)) for weights in ("linear", "cubic")
                ]
            found.append(_sample(cls("nearest", outside), 2, (2, 1, 7, 5), (3, 4)))
            found.append(_sample(cls("linear", outside), 3, (2, 3, 4, 5, 1), (2, 1, 7)))
        found.append(_sample(cls(), 2, (0, 3, 4, 5), (2, 1)))
        found.append(_sample(cls(outside="border"), 2, (1, 1, 63, 1), (7, 1)))
        return found


def _sample(kernel: Sampled, rank: int, shape: tuple[int, ...], outputs: tuple[int, ...]) -> Sample:
    draws = {"input": Draw(shape), "positions": Draw((shape[0], *outputs, rank))}
    return Sample(Spec(kernel, Grid(rank), "grid sample", tuple(draws)), draws)
