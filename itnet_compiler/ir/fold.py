"""Family ``stationary``: overlapping windows added up, ``fold``, the adjoint of taking windows apart."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Window
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["Fold"]


@dataclass(frozen=True)
class Fold(Kernel):
    """Each position adds up what the windows that it lies in hold for it (``torch.nn.Fold``; VOLO, arXiv 2106.13112):

        y[b, c, p] = Σ_w x[b, (c, k), w],  over windows w and taps k with s·w − low + d·k = p

    Operands: ``input`` (B, C·Π size, number of windows), or without B; ``output_size``: the extents of p by axis.
    """

    family: ClassVar[str] = "stationary"

    def properties(self, domain: Domain) -> frozenset[str]:
        return frozenset({"linear"})

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """Every tap's windows added at the places that they are taken from."""
        assert isinstance(domain, Window)
        source, extents = operands["input"], [int(size) for size in operands["output_size"]]
        batched = source if source.dim() == 3 else source.unsqueeze(0)
        taps = math.prod(domain.size)
        counts = [
            (extent + sum(pad) - step * (size - 1) - 1) // stride + 1
            for extent, pad, step, size, stride in zip(
                extents, domain.padding, domain.dilation, domain.size, domain.stride, strict=True
            )
        ]
        x = batched.reshape(batched.shape[0], batched.shape[1] // taps, taps, *counts)
        padded = [extent + sum(pad) for extent, pad in zip(extents, domain.padding, strict=True)]
        result = x.new_zeros(*x.shape[:2], *padded)
        for number, tap in enumerate(product(*map(range, domain.size))):
            places = tuple(
                slice(k * step, k * step + (count - 1) * stride + 1, stride)
                for k, step, count, stride in zip(tap, domain.dilation, counts, domain.stride, strict=True)
            )
            full = torch.zeros_like(result)
            full[(slice(None), slice(None), *places)] = x[:, :, number]
            result = result + full
        inner = tuple(slice(low, low + extent) for (low, _), extent in zip(domain.padding, extents, strict=True))
        result = result[(slice(None), slice(None), *inner)]
        return result if source.dim() == 3 else result[0]

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        assert isinstance(domain, Window)
        counts = [3 + 2 * number for number in range(domain.rank)]
        extents = [
            max((count - 1) * stride + step * (size - 1) + 1 - sum(pad), 1)
            for count, stride, step, size, pad in zip(
                counts, domain.stride, domain.dilation, domain.size, domain.padding, strict=True
            )
        ]
        taken = {2, math.prod(counts)}
        channels = next(count for count in (3, 5, 7) if count * math.prod(domain.size) not in taken)
        return self._sample(domain, 2, channels, extents)

    def _sample(self, domain: Window, batch: int, channels: int, extents: list[int]) -> Sample:
        counts = [
            (extent + sum(pad) - step * (size - 1) - 1) // stride + 1
            for extent, pad, step, size, stride in zip(
                extents, domain.padding, domain.dilation, domain.size, domain.stride, strict=True
            )
        ]
        shape = (batch, channels * math.prod(domain.size), math.prod(counts))
        draws: dict[str, Any] = {"input": Draw(shape), "output_size": extents}
        return Sample(Spec(self, domain, "fold", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """One addition for each element of the source."""
        moved = [operands["input"], *outputs]
        flops = int(operands["input"].numel())
        return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        def window(size: int, stride: int = 1, pad: int = 0, dilation: int = 1) -> Window:
            return Window((size, size + 1), (stride,) * 2, ((pad, pad),) * 2, (dilation,) * 2, transposed=True)

        return [
            cls()._sample(window(2), 2, 3, [5, 7]),
            cls()._sample(window(3, 2, 1), 2, 1, [7, 8]),
            cls()._sample(window(2, 1, 1, 2), 1, 2, [5, 6]),
            cls()._sample(window(1, 3), 2, 3, [7, 11]),
        ]
