"""Family ``dense``: y = M x with M given by the sizes alone: interpolation, adaptive pooling, global reductions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, gcd, prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Grid
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .windows import maximum_of_windows

__all__ = ["Dense", "cubic_convolution"]

INTERPOLATIONS = ("nearest", "nearest-exact", "linear", "cubic")


@dataclass(frozen=True)
class Dense(Kernel):
    """M[p, p'] over the whole grid, a product of one small [O, A] matrix per axis.

    Operands: ``input`` [..., A₁ … A_r] and, where the output size is only known at run time, ``output_size``: a list of
    r ints. With ``uniform`` weights the axes to reduce may be anywhere.

    Attributes:
        weights: ``adaptive`` (window i covers ⌊i·A/O⌋ … ⌈(i+1)·A/O⌉), ``nearest``, ``nearest-exact``, ``linear``,
            ``cubic`` (A = −0.75; −0.5 with ``antialias``, as in torch) or ``uniform`` (reduce ``axes``).
        output_size: O per axis, where it is constant and not given by ``scales``.
        scales: O/A per axis, as the user gave them; the interpolation then uses them instead of the ratio of sizes.
        align_corners: Whether the centres of the corner positions coincide (linear and cubic).
        antialias: Whether the filter widens when the grid shrinks (linear and cubic, two axes).
        maximum: Reduce with max instead of the sum (adaptive and uniform).
        returns_indices: Of a maximum: also return the (flat) source position of each. Of a uniform one, over one axis:
            the gradient goes to these positions alone, and not in equal shares to all that hold the maximum.
        axes: Uniform only: the axes reduced, as the user counted them.
        keepdim: Uniform only: whether the reduced axes stay, with size 1.
        mean: Uniform only: whether the sum is divided by the number of positions.
    """

    family: ClassVar[str] = "dense"

    weights: str
    output_size: tuple[int, ...] | None = None
    scales: tuple[float, ...] | None = None
    align_corners: bool = False
    antialias: bool = False
    maximum: bool = False
    returns_indices: bool = False
    axes: tuple[int, ...] = ()
    keepdim: bool = False
    mean: bool = False

    def __post_init__(self) -> None:
        if self.weights not in ("adaptive", "uniform", *INTERPOLATIONS):
            raise ValueError(f"weights {self.weights!r} are none of adaptive, uniform, {', '.join(INTERPOLATIONS)}")
        if self.weights == "uniform" and not self.axes:
            raise ValueError("a uniform reduction needs axes")
        if self.weights == "uniform" and self.returns_indices and not (self.maximum and len(self.axes) == 1):
            raise ValueError("positions are those of a maximum over one axis")
        if self.output_size is not None and self.scales is not None:
            raise ValueError("the output has a size or scales, not both")

    @property
    def reduction(self) -> str:
        return "max" if self.maximum else "sum"

    def properties(self, domain: Domain) -> frozenset[str]:
        assert isinstance(domain, Grid)
        if self.maximum:
            return frozenset()
        if self.weights != "uniform":
            return frozenset({"linear", "normalised"})
        return frozenset({"linear", "separable", "normalised"} if self.mean else {"linear", "separable"})

    def output_extents(self, extents: Sequence[int], output_size: Sequence[int] | None = None) -> tuple[int, ...]:
        """Output positions per axis for source ``extents``; ``output_size`` is the operand, where there is one."""
        size = output_size if output_size is not None else self.output_size
        if size is not None:
            return tuple(int(count) for count in size)
        if self.scales is None:
            raise ValueError("neither an output size nor scales are given")
        return tuple(int(extent * scale) for extent, scale in zip(extents, self.scales, strict=True))

    def evaluate(self, domain: Domain, **operands: Any) -> Any:
        """M₁ ⊗ … ⊗ M_r · x; for a maximum the largest x of each window."""
        assert isinstance(domain, Grid)
        source = operands["input"]
        if self.weights == "uniform":
            return self._reduce(source)
        extents = source.shape[source.dim() - domain.rank :]
        outputs = self.output_extents(extents, operands.get("output_size"))
        if self.maximum:
            pairs = zip(extents, outputs, strict=True)
            values, positions = maximum_of_windows(source, [_adaptive_taps(*pair, source.device) for pair in pairs])
            return (values, positions) if self.returns_indices else values
        for axis, (extent, count) in enumerate(zip(extents, outputs, strict=True)):
            matrix = self._axis_matrix(axis, extent, count, source)
            source = (source.movedim(axis - domain.rank, -1) @ matrix.T).movedim(-1, axis - domain.rank)
        return source

    def _reduce(self, source: Tensor) -> Any:
        if self.returns_indices:
            return tuple(source.max(self.axes[0], self.keepdim))
        if self.maximum:
            return source.amax(self.axes, self.keepdim)
        total = source.sum(self.axes, self.keepdim)
        return total / prod(source.shape[axis] for axis in self.axes) if self.mean else total

    def _axis_matrix(self, axis: int, extent: int, outputs: int, like: Tensor) -> Tensor:
        """[O, A]: weights along one axis."""
        scale = self.scales[axis] if self.scales else None
        if self.weights == "adaptive":
            taps = _adaptive_taps(extent, outputs, like.device)
            inside = (taps.unsqueeze(-1) == torch.arange(extent, device=like.device)).sum(1).double()
            matrix = inside / inside.sum(1, keepdim=True)
        elif self.weights.startswith("nearest"):
            matrix = _nearest_matrix(extent, outputs, _step(extent, outputs, scale), self.weights == "nearest-exact")
        else:
            # torch copies an axis that keeps its size, even under a scale of 1.01; plain cubic follows the scale.
            copied = extent == outputs and (self.antialias or self.weights == "linear")
            step = 1.0 if copied else _step(extent, outputs, scale, self.align_corners)
            build = _filter_matrix if self.antialias else _interpolation_matrix
            matrix = build(extent, outputs, step, self.weights == "cubic", self.align_corners)
        return matrix.to(like.device, like.dtype)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """M on flattened positions: [P, P']; of a uniform reduction one row over the reduced positions."""
        assert isinstance(domain, Grid)
        if self.maximum:
            raise NotImplementedError("a maximum over a window is no matrix")
        source = operands["input"]
        if self.weights == "uniform":
            count = prod(source.shape[axis] for axis in self.axes)
            return source.new_full((1, count), 1 / count if self.mean else 1.0)
        extents = source.shape[source.dim() - domain.rank :]
        outputs = self.output_extents(extents, operands.get("output_size"))
        matrix = source.new_ones(1, 1)
        for axis, (extent, count) in enumerate(zip(extents, outputs, strict=True)):
            matrix = torch.kron(matrix, self._axis_matrix(axis, extent, count, source))
        return matrix

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """What the layer does with ``kernel_matrix``: M times the flattened positions."""
        assert isinstance(domain, Grid)
        source = operands["input"]
        if self.weights == "uniform":
            moved = source.movedim(self.axes, tuple(range(-len(self.axes), 0)))
            total = (moved.flatten(-len(self.axes)) @ matrix.T).squeeze(-1)
            return total.reshape(self._reduce(source).shape)
        extents = source.shape[source.dim() - domain.rank :]
        outputs = self.output_extents(extents, operands.get("output_size"))
        return (source.flatten(-domain.rank) @ matrix.T).unflatten(-1, outputs)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """Batch 2, three channels, at most 16 outputs; distinct extents, larger and smaller than these by turns."""
        assert isinstance(domain, Grid)
        if self.weights == "uniform":
            axes = max(max(axis + 1 if axis >= 0 else 1 - axis for axis in self.axes), 2)
            return Sample(Spec(self, domain, "miniature", roles), {"input": Draw(tuple(range(2, 2 + axes)))})
        outputs = tuple(4 + 2 * axis for axis in range(domain.rank))
        small = self
        if self.output_size is not None:
            outputs = tuple(min(count, 16) for count in self.output_size)
            small = replace(self, output_size=outputs)
        extents: list[int] = []
        for axis, count in enumerate(outputs):
            extent = count - 2 if axis % 2 else count + 3
            if self.scales is not None:
                extent = ceil((2 + axis) / self.scales[axis])
            extent = max(extent, 4)
            while extent in extents or (extent < 200 and self._left_to_rounding(axis, extent, count)):
                extent += 1
            extents.append(extent)
        draws = {"input": Draw((2, 3, *extents)), "output_size": list(outputs)}
        return Sample(Spec(small, domain, "miniature", roles), {role: draws[role] for role in roles})

    def _left_to_rounding(self, axis: int, extent: int, outputs: int) -> bool:
        """Whether torch may choose another neighbour than the formula at these sizes.

        It does where a position is a whole number, see ``_nearest_matrix``, and where an axis of two keeps or doubles
        its size under a scale near 1 or 2, which it then takes for 1 or 2.
        """
        if not self.weights.startswith("nearest"):
            return False
        if self.scales is None:
            return extent % 2 == 0 or gcd(extent, outputs) > 1
        return int(extent * self.scales[axis]) in (extent, 2 * extent) and self.scales[axis] not in (1.0, 2.0)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Nearest only copies; a maximum compares, and an average adds, every tap; other weights multiply and add."""
        assert isinstance(domain, Grid)
        source, result = operands["input"], outputs[0]
        moved = sum(value.numel() * value.element_size() for value in (source, *outputs))
        if self.weights == "uniform":
            return Work(source.numel(), moved)
        if self.weights.startswith("nearest"):
            return Work(0, moved)
        taps = 1
        for extent, count in zip(source.shape[-domain.rank :], result.shape[-domain.rank :], strict=True):
            shrink = ceil(extent / max(count, 1))
            if self.weights == "adaptive":
                taps *= shrink
            else:
                taps *= (4 if self.weights == "cubic" else 2) * (shrink if self.antialias else 1)
        return Work((1 if self.weights == "adaptive" else 2) * taps * result.numel(), moved)

    @classmethod
    def samples(cls) -> list[Sample]:
        from ._dense_samples import samples

        return samples()


def _adaptive_taps(extent: int, outputs: int, device: torch.device) -> Tensor:
    """[O, K]: positions ⌊i·A/O⌋ … ⌈(i+1)·A/O⌉ − 1 of window i, then A for "outside"."""
    window = torch.arange(outputs, device=device).unsqueeze(1)
    first, last = window * extent // outputs, -((-(window + 1) * extent) // outputs)
    taps = first + torch.arange(int((last - first).max()) if outputs else 1, device=device)
    return torch.where(taps < last, taps, extent)


def _step(extent: int, outputs: int, scale: float | None, align_corners: bool = False) -> float:
    """Source positions per output position."""
    if align_corners:
        return (extent - 1) / (outputs - 1) if outputs > 1 else 0.0
    return 1.0 / scale if scale is not None and scale > 0 else extent / outputs


def _nearest_matrix(extent: int, outputs: int, step: float, exact: bool) -> Tensor:
    """[O, A], one-hot rows: ⌊i·step⌋, or for ``nearest-exact`` ⌊(i + ½)·step⌋.

    torch evaluates this in float32 for most operands, and where i·step is a whole number it may fall to the neighbour
    below (14 → 23 positions, ``nearest-exact``). Here the product is exact up to the last rounding before the floor.
    """
    position = torch.arange(outputs, dtype=torch.float64) + (0.5 if exact else 0.0)
    index = (position * step).float().floor().long().clamp(max=extent - 1)
    return (index.unsqueeze(1) == torch.arange(extent)).double()


def cubic_convolution(distance: Tensor, sharpness: float) -> Tensor:
    """Keys' cubic convolution kernel at ``distance`` ≥ 0, with A = ``sharpness``."""
    near = ((sharpness + 2) * distance - (sharpness + 3)) * distance * distance + 1
    far = ((distance - 5) * distance + 8) * distance - 4
    return torch.where(distance < 1, near, torch.where(distance < 2, far * sharpness, 0.0))


def _interpolation_matrix(extent: int, outputs: int, step: float, cubic: bool, align_corners: bool) -> Tensor:
    """[O, A]: weights of the 2 or 4 nearest positions; beyond the ends the end position is repeated."""
    position = torch.arange(outputs, dtype=torch.float64)
    source = step * position if align_corners else step * (position + 0.5) - 0.5
    if not cubic:
        source = source.clamp(min=0)
    first = source.floor()
    offsets = torch.arange(-1, 3) if cubic else torch.arange(2)
    distance = (source - first).clamp(0, 1).unsqueeze(1).sub(offsets).abs()
    weights = cubic_convolution(distance, -0.75) if cubic else 1 - distance
    index = (first.long().unsqueeze(1) + offsets).clamp(0, extent - 1)
    return torch.zeros(outputs, extent, dtype=torch.float64).scatter_add(1, index, weights)


def _filter_matrix(extent: int, outputs: int, step: float, cubic: bool, align_corners: bool) -> Tensor:
    """[O, A]: a triangle or cubic filter as wide as the step, normalised over the positions inside the source.

    ``align_corners`` acts through ``step`` alone: torch centres the filter at step·(i + ½) either way.
    """
    width = max(step, 1.0)
    support = (2.0 if cubic else 1.0) * width
    centre = step * (torch.arange(outputs, dtype=torch.float64).unsqueeze(1) + 0.5)
    position = torch.arange(extent, dtype=torch.float64)
    distance = ((position - centre + 0.5) / width).abs()
    weights = cubic_convolution(distance, -0.5) if cubic else (1 - distance).clamp(min=0)
    first, last = (centre - support + 0.5).trunc().clamp(min=0), (centre + support + 0.5).trunc()
    weights = torch.where((position >= first) & (position < last), weights, 0.0)
    return weights / weights.sum(1, keepdim=True)
