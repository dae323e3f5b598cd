"""Family ``semiseparable`` with A = B = C = 1: the sum of everything up to a position."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Past
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["Cumulative"]


@dataclass(frozen=True)
class Cumulative(Kernel):
    """y[…, t, …] = Σ_{s ≤ t} x[…, s, …], so that K(t, s) = 1 for s ≤ t.

    Operand: ``input``.

    Attributes:
        axis: Of t, counted from the end.
    """

    family: ClassVar[str] = "semiseparable"

    axis: int = -1

    def properties(self, domain: Domain) -> frozenset[str]:
        return frozenset({"linear"})

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """K·x."""
        return self.apply_matrix(domain, self.kernel_matrix(domain, **operands), **operands)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, (T, T)."""
        source = operands["input"]
        return source.new_ones(source.shape[self.axis], source.shape[self.axis]).tril()

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_s K(t, s) x_s."""
        moved = operands["input"].movedim(self.axis, -1)
        return torch.einsum("ts,...s->...t", matrix, moved).movedim(-1, self.axis)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return self._sample((3, 5, 4, 7, 2)[: max(-self.axis, 1)])

    def _sample(self, shape: tuple[int, ...]) -> Sample:
        return Sample(Spec(self, Past(), "cumulative sum", ("input",)), {"input": Draw(shape)})

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """One addition an element."""
        source = operands["input"]
        return Work(int(source.numel()), sum(int(t.numel()) * t.element_size() for t in (source, *outputs)))

    @classmethod
    def samples(cls) -> list[Sample]:
        return [cls()._sample((2, 7)), cls()._sample((63,)), cls(-2)._sample((2, 0, 3)), cls(-3)._sample((1, 5, 7))]
