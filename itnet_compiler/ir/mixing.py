"""Family ``dense`` with a learned matrix: token mixing, a linear layer over positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Grid
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["Mixing"]


@dataclass(frozen=True)
class Mixing(Kernel):
    """A learned matrix over positions, the same for all features (MLP-Mixer, arXiv 2105.01601; gMLP, 2105.08050):

        y[…, i] = Σ_j M[i, j]·x[…, j] + b[i]              of the last axis, operands ``input``, ``weight``, ``bias``
        y[…, i, e] = Σ_j M[…, i, j]·x[…, j, e]            with ``left``, of the axis before it, without bias

    Attributes:
        left: Whether the matrix is the first factor of the product.
    """

    family: ClassVar[str] = "dense"

    left: bool = False

    def properties(self, domain: Domain) -> frozenset[str]:
        """Linear but for the bias."""
        return frozenset({"linear"})

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """y."""
        matrix, bias = self.kernel_matrix(domain, **operands), operands.get("bias")
        output = self.apply_matrix(domain, matrix, **operands)
        return output if bias is None else output + bias

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """M, (…, I, J)."""
        return operands["weight"]

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """M·x without the bias."""
        equation = "...ij,...je->...ie" if self.left else "ij,...j->...i"
        return torch.einsum(equation, matrix, operands["input"])

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return self._sample(roles, (2, 3), 5, 7)

    def _sample(self, roles: tuple[str, ...], lead: tuple[int, ...], outputs: int, inputs: int) -> Sample:
        draws = {
            "input": Draw((*lead, inputs, 4) if self.left else (*lead, inputs)),
            "weight": Draw((outputs, inputs), deviation=max(inputs, 1) ** -0.5),
            "bias": Draw((outputs,)),
        }
        return Sample(Spec(self, Grid(1), "token mixing", roles), {role: draws[role] for role in roles})

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """2·J flops an element of the result, one more for the bias."""
        elements = int(outputs[0].numel())
        flops = elements * (2 * int(operands["weight"].shape[-1]) + ("bias" in operands))
        moved = [*operands.values(), *outputs]
        return Work(flops, sum(math.prod(map(int, tensor.shape)) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        plain, biased = ("input", "weight"), ("input", "weight", "bias")
        return [
            cls()._sample(biased, (2, 3), 5, 7),
            cls()._sample(plain, (2,), 63, 1),
            cls()._sample(biased, (0, 3), 5, 7),
            cls()._sample(plain, (), 7, 63),
            cls(left=True)._sample(plain, (2,), 5, 7),
            cls(left=True)._sample(plain, (2, 3), 1, 63),
        ]
