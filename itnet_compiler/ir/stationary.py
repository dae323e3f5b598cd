"""Family ``stationary``: K(p, p') = W[(p' − s·p + low) / d]: convolution, transposed convolution, window pooling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Window
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .windows import gather_windows, maximum_of_windows

__all__ = ["Stationary", "output_extents"]


@dataclass(frozen=True)
class Stationary(Kernel):
    """A kernel that depends on the offset between source and output only.

    Operands: ``input`` [N, C, A₁ … A_r] (the batch axis may be missing; uniform kernels take any leading axes), and
    where the weights are learned ``weight`` [C_out, C/groups, k₁ … k_r] (transposed: [C, C_out/groups, k₁ … k_r]) and
    optionally ``bias`` [C_out].

    Attributes:
        groups: Channel groups that do not see each other.
        weights: ``learned`` (operand ``weight``) or ``uniform`` (average pooling).
        maximum: Reduce with max instead of the sum (max pooling); weights are then ``uniform``.
        count_include_pad: Whether an average counts the padded positions.
        divisor: Divides the sum of an average pooling instead of the number of positions.
        returns_indices: Max pooling only: also return the flat source position of each maximum.
    """

    family: ClassVar[str] = "stationary"

    groups: int = 1
    weights: str = "learned"
    maximum: bool = False
    count_include_pad: bool = True
    divisor: int | None = None
    returns_indices: bool = False

    def __post_init__(self) -> None:
        if self.weights not in ("learned", "uniform"):
            raise ValueError(f"weights are learned or uniform, not {self.weights!r}")
        if self.maximum and self.weights != "uniform":
            raise ValueError("a maximum has uniform weights")

    @property
    def reduction(self) -> str:
        return "max" if self.maximum else "sum"

    def properties(self, domain: Domain) -> frozenset[str]:
        assert isinstance(domain, Window)
        learned, padded = self.weights == "learned", any(low or high for low, high in domain.padding)
        facts = {
            "linear": not self.maximum,
            "stationary": domain.boundary in ("zeros", "circular") and (learned or self._same_everywhere(domain)),
            "causal": domain.rank == 1
            and not domain.transposed
            and domain.boundary == "zeros"
            and domain.stride == (1,)
            and domain.dilation[0] * (domain.size[0] - 1) <= domain.padding[0][0],
            "normalised": not (learned or self.maximum)
            and self.divisor is None
            and (not self.count_include_pad or not padded or domain.boundary != "zeros"),
        }
        return frozenset(name for name, holds in facts.items() if holds)

    def _same_everywhere(self, domain: Window) -> bool:
        """Whether the uniform weight is the same in every window."""
        if self.maximum or self.divisor is not None:
            return True
        padded = any(low or high for low, high in domain.padding)
        return not domain.ceil_mode and (self.count_include_pad or not padded or domain.boundary != "zeros")

    def evaluate(self, domain: Domain, **operands: Any) -> Any:
        """y[p] = Σ_k W[k] · x[s·p − low + d·k] (+ bias), or the average, or the maximum over k."""
        assert isinstance(domain, Window)
        source = operands["input"]
        if self.weights == "learned":
            return self._convolve(domain, source, operands["weight"], operands.get("bias"))
        extents = source.shape[source.dim() - domain.rank :]
        indices = source_indices(domain, extents, source.device)
        if self.maximum:
            values, positions = maximum_of_windows(source, indices)
            return (values, positions) if self.returns_indices else values
        return gather_windows(source, indices, 0.0).sum(-1) / self._divisors(domain, extents, source)

    def _convolve(self, domain: Window, source: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        batched = source if source.dim() == domain.rank + 2 else source.unsqueeze(0)
        windows = gather_windows(batched, source_indices(domain, batched.shape[2:], source.device), 0.0)
        grid = windows.shape[2:-1]
        # n batch, g group, c input channel of the group, o output channel of the group, p position, t tap
        windows = windows.flatten(2, -2).unflatten(1, (self.groups, -1))
        out = torch.einsum("ngcpt,gcot->ngop", windows, self._grouped(domain, weight))
        out = out.flatten(1, 2).unflatten(2, tuple(grid))
        if bias is not None:
            out = out + bias.reshape(-1, *(1,) * domain.rank)
        return out if source.dim() == domain.rank + 2 else out.squeeze(0)

    def _grouped(self, domain: Window, weight: Tensor) -> Tensor:
        """Weight as [groups, input channels of a group, output channels of a group, taps]."""
        grouped = weight.flatten(2).unflatten(0, (self.groups, -1))
        return grouped if domain.transposed else grouped.transpose(1, 2)

    def _divisors(self, domain: Window, extents: Sequence[int], like: Tensor) -> Tensor:
        """[O₁ … O_r]: what the sum over each window is divided by."""
        outputs = output_extents(domain, extents)
        if self.divisor is not None:
            return torch.full(outputs, self.divisor, dtype=like.dtype, device=like.device)
        padding = self.count_include_pad or domain.boundary != "zeros"
        counts = torch.ones((), dtype=like.dtype, device=like.device)
        for axis, (extent, count) in enumerate(zip(extents, outputs, strict=True)):
            low, high = domain.padding[axis] if padding else (0, 0)
            taps = _taps(domain, axis, count, like.device)
            inside = ((taps >= -low) & (taps < extent + high)).sum(1).to(like.dtype)
            counts = counts.unsqueeze(-1) * inside
        return counts.clamp(min=1)  # a window of padding alone gives 0

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K on flattened positions p, p': [P, P'] where uniform, else [C_out·P, C·P'] (channel slowest)."""
        assert isinstance(domain, Window)
        if self.maximum:
            raise NotImplementedError("a maximum over a window is no matrix")
        source = operands["input"]
        extents = source.shape[source.dim() - domain.rank :]
        units = torch.eye(prod(extents), dtype=source.dtype, device=source.device).unflatten(1, tuple(extents))
        hits = gather_windows(units, source_indices(domain, extents, source.device), 0.0)  # [P', O₁ … O_r, taps]
        if self.weights == "uniform":
            return (hits.sum(-1) / self._divisors(domain, extents, source)).flatten(1).T
        blocks = torch.einsum("spt,gcot->gopcs", hits.flatten(1, -2), self._grouped(domain, operands["weight"]))
        return torch.block_diag(*blocks.flatten(3, 4).flatten(1, 2))

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """Batch 2, at most three groups of few channels, and the smallest distinct extents with several windows."""
        assert isinstance(domain, Window)
        domain, small = _shortened(domain), replace(self, groups=min(self.groups, 3))
        channels, features = (3, 5) if small.groups == 1 else (2 * small.groups, 3 * small.groups)
        used, extents = {2, channels}, []
        for axis in range(domain.rank):
            reach, sides = domain.dilation[axis] * (domain.size[axis] - 1) + 1, domain.padding[axis]
            least = reach - sum(sides) + domain.stride[axis] + axis
            if domain.transposed:
                least = (sum(sides) - reach) // domain.stride[axis] + 2
            extent = max(3 + axis, least, *(side + 1 for side in sides if domain.boundary != "zeros"))
            while extent in used:
                extent += 1
            used.add(extent)
            extents.append(extent)
        draws = {
            "input": Draw((2, channels, *extents)),
            "weight": Draw(small._weight_shape(domain, channels, features)),
            "bias": Draw((features,)),
        }
        return Sample(Spec(small, domain, "miniature", roles), {role: draws[role] for role in roles})

    def _weight_shape(self, domain: Window, channels: int, features: int) -> tuple[int, ...]:
        if domain.transposed:
            return (channels, features // self.groups, *domain.size)
        return (features, channels // self.groups, *domain.size)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Every tap of every output once; of a transposed window every tap of every input."""
        assert isinstance(domain, Window)
        tensors = [value for value in operands.values() if isinstance(value, Tensor)] + list(outputs)
        moved = sum(value.numel() * value.element_size() for value in tensors)
        taps, count = prod(domain.size), outputs[0].numel()
        if self.weights == "uniform":
            return Work(taps * count, moved)
        source, weight = operands["input"], operands["weight"]
        seen = source.numel() if domain.transposed else count
        flops = 2 * seen * weight.shape[1] * taps + (count if operands.get("bias") is not None else 0)
        return Work(flops, moved)

    @classmethod
    def samples(cls) -> list[Sample]:
        from ._stationary_samples import samples

        return samples()


def _shortened(domain: Window) -> Window:
    """A window of thousands of taps with 32 or 33 (as even as it was), and padding in proportion."""
    size = tuple(taps if taps <= 64 else 32 + taps % 2 for taps in domain.size)
    padding = tuple(
        (low, high) if less == taps else (round(low * (less - 1) / (taps - 1)), round(high * (less - 1) / (taps - 1)))
        for taps, less, (low, high) in zip(domain.size, size, domain.padding, strict=True)
    )
    return replace(domain, size=size, padding=padding)


def output_extents(domain: Window, extents: Sequence[int]) -> tuple[int, ...]:
    """Output positions per axis for source ``extents``."""
    counts = []
    for axis, extent in enumerate(extents):
        step, (low, high) = domain.stride[axis], domain.padding[axis]
        reach = domain.dilation[axis] * (domain.size[axis] - 1)
        if domain.transposed:
            extra = domain.output_padding[axis] if domain.output_padding else 0
            counts.append((extent - 1) * step - low - high + reach + extra + 1)
            continue
        room = extent + low + high - reach - 1
        count = (room + (step - 1 if domain.ceil_mode else 0)) // step + 1
        # torch keeps the last, partial window only where it starts inside the source or its low padding.
        if domain.ceil_mode and (count - 1) * step >= extent + low:
            count -= 1
        counts.append(count)
    return tuple(counts)


def _taps(domain: Window, axis: int, outputs: int, device: torch.device) -> Tensor:
    """[O, K]: s·p − low + d·k; of a transposed window p + low − d·k, which is s·p' where it is divisible by s."""
    position = torch.arange(outputs, device=device).unsqueeze(1)
    tap = domain.dilation[axis] * torch.arange(domain.size[axis], device=device)
    low = domain.padding[axis][0]
    return position + low - tap if domain.transposed else position * domain.stride[axis] - low + tap


def source_indices(domain: Window, extents: Sequence[int], device: torch.device) -> list[Tensor]:
    """Per axis [O, K]: the source position of every tap, after the boundary rule; A stands for "outside"."""
    if domain.transposed and domain.boundary != "zeros":
        raise ValueError("a transposed window has no boundary rule but zeros")
    indices = []
    for axis, (extent, outputs) in enumerate(zip(extents, output_extents(domain, extents), strict=True)):
        taps, (low, high) = _taps(domain, axis, outputs, device), domain.padding[axis]
        if domain.transposed:
            index = taps.div(domain.stride[axis], rounding_mode="floor")
            inside = (taps == index * domain.stride[axis]) & (taps >= 0) & (index < extent)
        elif domain.boundary == "zeros":
            inside, index = (taps >= 0) & (taps < extent), taps
        else:
            inside, index = (taps >= -low) & (taps < extent + high), _fold(taps, extent, domain.boundary)
        indices.append(torch.where(inside, index, extent))
    return indices


def _fold(taps: Tensor, extent: int, boundary: str) -> Tensor:
    """Padded positions brought back into the source: reflected about its ends, held at them, or wrapped around."""
    if boundary == "circular":
        return taps.remainder(extent)
    if boundary == "replicate":
        return taps.clamp(0, extent - 1)
    if boundary == "reflect":
        return (extent - 1) - ((extent - 1) - taps.abs()).abs()
    raise ValueError(f"unknown boundary {boundary!r}")
