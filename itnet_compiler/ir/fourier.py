"""Family ``dense`` with the matrix of the discrete Fourier transform: mixing by FFT (FNet, arXiv 2105.03824)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Grid
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["TRANSFORMS", "Fourier"]

TRANSFORMS = ("fft", "ifft", "rfft", "irfft")


@dataclass(frozen=True)
class Fourier(Kernel):
    """A discrete Fourier transform along each of ``axes``, with N the number of positions along one of them:

        fft     y[k] = Σ_t x[t]·exp(−2πi·kt/N)
        ifft    y[t] = Σ_k x[k]·exp(+2πi·kt/N)/N
        rfft    fft of real x; of the last axis 0 ≤ k ≤ N/2 only
        irfft   its inverse: ifft of an x that is its own conjugated mirror image, of the last axis 0 ≤ k ≤ N/2 only

    Operands: ``input``; ``lengths``, a list of N by axis, where the source is cut or padded with zeros to them.

    Attributes:
        transform: One of the four.
        axes: As the user counted them.
        norm: ``backward`` (as above), ``ortho`` (both directions over √N) or ``forward`` (fft over N, ifft over 1).
    """

    family: ClassVar[str] = "dense"

    transform: str
    axes: tuple[int, ...]
    norm: str = "backward"

    def __post_init__(self) -> None:
        if self.transform not in TRANSFORMS:
            raise ValueError(f"transform {self.transform!r} is none of {', '.join(TRANSFORMS)}")

    def properties(self, domain: Domain) -> frozenset[str]:
        """Linear."""
        return frozenset({"linear"})

    def lengths(self, operands: Operands) -> list[int]:
        """N of every axis."""
        if operands.get("lengths") is not None:
            return [int(length) for length in operands["lengths"]]
        found = [int(operands["input"].shape[axis]) for axis in self.axes]
        if self.transform == "irfft":
            found[-1] = 2 * (found[-1] - 1)
        return found

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """One product with a matrix for each axis, all in complex numbers."""
        source, real = operands["input"], torch.view_as_real
        result = source if source.is_complex() else torch.complex(source, torch.zeros_like(source))
        for axis, length in reversed(list(zip(self.axes, self.lengths(operands), strict=True))):
            if self.transform == "irfft" and axis == self.axes[-1]:
                continue
            result = _applied(self._matrix(axis, length, result), result, axis)
        if self.transform == "irfft":
            axis, length = self.axes[-1], self.lengths(operands)[-1]
            result = real(_applied(self._half(length, result), result, axis))[..., 0]
        return result

    def _matrix(self, axis: int, length: int, like: Tensor) -> Tensor:
        """[K, N] complex."""
        rows = length // 2 + 1 if self.transform == "rfft" and axis == self.axes[-1] else length
        return _waves(rows, length, self.transform in ("ifft", "irfft"), like) * self._scale(length)

    def _half(self, length: int, like: Tensor) -> Tensor:
        """[N, N/2 + 1] complex: every frequency but 0 and N/2 counts twice, since its mirror image is not given.

        Of those two only the real part counts.
        """
        columns = length // 2 + 1
        waves = _waves(columns, length, True, like).mT * self._scale(length)
        twice = torch.tensor([1.0 if 2 * k % length == 0 else 2.0 for k in range(columns)], device=like.device)
        return waves * twice.to(waves.dtype)

    def _scale(self, length: int) -> float:
        inverse = self.transform in ("ifft", "irfft")
        if self.norm == "ortho":
            return 1.0 / math.sqrt(max(length, 1))
        return 1.0 / max(length, 1) if inverse == (self.norm == "backward") else 1.0

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """[K, N] complex, of a transform along one axis."""
        if len(self.axes) > 1 or self.transform == "irfft":
            raise NotImplementedError(
                "a kernel matrix is there for one axis, and not for irfft, which is linear in ℝ only"
            )
        return self._matrix(self.axes[0], self.lengths(operands)[0], operands["input"])

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """The matrix times the source, cut or padded to its columns."""
        return _applied(matrix, operands["input"].to(matrix.dtype), self.axes[0])

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        rank = max((-axis if axis < 0 else axis + 1) for axis in self.axes)
        lengths = [6 + number for number in range(len(self.axes))] if "lengths" in roles else None
        return self._sample((3, 5, 4, 7, 2, 3)[:rank], lengths)

    def _sample(self, shape: Sequence[int], lengths: list[int] | None = None) -> Sample:
        draws: dict[str, Any] = {"input": Draw(tuple(shape))}
        if lengths is not None:
            draws["lengths"] = lengths
        return Sample(Spec(self, Grid(len(self.axes)), "fourier transform", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """5·log₂ N flops for each element of the result and axis, as FFTs are usually counted."""
        moved = [operands["input"], *outputs]
        points = sum(math.ceil(math.log2(max(length, 2))) for length in self.lengths(operands))
        flops = 5 * int(outputs[0].numel()) * points
        return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        cases = [(cls(name, (-1,)), (2, 7), None) for name in TRANSFORMS]
        return [
            kernel._sample(shape, lengths)
            for kernel, shape, lengths in [
                *cases,
                *((cls(name, (-1,)), (3, 8), None) for name in ("rfft", "irfft")),
                *((cls(name, (-1,)), (3, 8), [5]) for name in TRANSFORMS),
                *((cls(name, (1,), norm), (2, 5, 3), [9]) for name in TRANSFORMS for norm in ("ortho", "forward")),
                *((cls(name, (1, 2)), (2, 5, 4), None) for name in TRANSFORMS),
                (cls("fft", (-2, -1), "ortho"), (2, 63, 1), None),
                (cls("irfft", (-2, -1), "ortho"), (2, 3, 4), [3, 7]),
            ]
        ]


def _waves(rows: int, columns: int, inverse: bool, like: Tensor) -> Tensor:
    """exp(∓2πi·kt/N), k < ``rows``, t < ``columns`` = N."""
    k, t = (torch.arange(count, device=like.device) for count in (rows, columns))
    angle = (k[:, None] * t[None, :] % max(columns, 1)).double() * (2 * math.pi / max(columns, 1))
    waves = torch.polar(torch.ones_like(angle), angle if inverse else -angle)
    return waves.to(like.dtype if like.is_complex() else torch.promote_types(like.dtype, torch.complex64))


def _applied(matrix: Tensor, source: Tensor, axis: int) -> Tensor:
    """The matrix along an axis of a source that may be shorter or longer than its columns."""
    source = source.movedim(axis, -1)[..., : matrix.shape[1]]
    return (source @ matrix[:, : source.shape[-1]].mT).movedim(-1, axis)
