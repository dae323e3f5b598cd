"""Family ``semiseparable``: linear recurrences, K(t, s) = C_t (A_t ⋯ A_{s+1}) B_s. Here those with a diagonal A.

The kernels ``Selective`` (Mamba) and ``MatrixState`` (linear attention and its kin) are of the same family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Past
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["Diagonal", "moved_bytes"]


@dataclass(frozen=True)
class Diagonal(Kernel):
    """A state each of whose entries decays on its own: moving averages, LRU, S4D, the RG-LRU.

        h_t = a_t ⊙ h_{t−1} + x_t,    K(t, s) = a_t ⊙ ⋯ ⊙ a_{s+1}

    Operands: ``decay`` a, factors (not logarithms) that broadcast to ``input`` [T, …], or with ``constant`` to
    input[0]; ``initial`` h_0, broadcast to input[0], zero if it is not given. Real or complex. Returns all states
    [T, …] and the last one, in the dtype that the operands promote to; a float32 decay leaves half precision as it is.

    Attributes:
        reverse: Whether time runs from the last step to the first.
        constant: Whether the decay is that of every step, so that K(t, s) = a^(t−s) is also a convolution.
    """

    family: ClassVar[str] = "semiseparable"
    time_axis: ClassVar[int] = 0

    reverse: bool = False
    constant: bool = False

    def properties(self, domain: Domain) -> frozenset[str]:
        return frozenset({"linear"} if self.reverse else {"linear", "causal"})

    def factors(self, decay: Tensor, source: Tensor) -> Tensor:
        """a_t of every step and entry of the state, [T, …]."""
        return decay.expand(source.shape)

    @staticmethod
    def result_type(source: Tensor, decay: Tensor) -> torch.dtype:
        """Dtype of the states of an input [T, …]."""
        dtype = torch.promote_types(source.dtype, decay.dtype)
        half = source.dtype in (torch.bfloat16, torch.float16)
        return source.dtype if half and dtype == torch.float32 else dtype

    def evaluate(self, domain: Domain, **operands: Any) -> tuple[Tensor, Tensor]:
        """A plain loop over time."""
        assert domain == Past()
        source, initial = operands["input"], operands.get("initial")
        factors = self.factors(operands["decay"], source)
        dtype = torch.result_type(source, factors)
        state = source.new_zeros(source.shape[1:], dtype=dtype)
        if initial is not None:
            state = state + initial
        states = []
        for x, a in zip(self.ordered(source), self.ordered(factors), strict=True):
            state = a * state + x
            states.append(state)
        result = self.result_type(source, factors)
        if not states:
            return source.to(result), state.to(result)
        return self.ordered(torch.stack(states)).to(result), state.to(result)

    def ordered(self, tensor: Tensor) -> Tensor:
        """In the order in which the steps are taken; its own inverse."""
        return tensor.flip(0) if self.reverse else tensor

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, (…, T, T): one matrix for every entry of the state."""
        source = operands["input"]
        factors = self.ordered(self.factors(operands["decay"], source))
        matrix = segment_products(factors.movedim(0, -1))
        return matrix.flip(-1, -2) if self.reverse else matrix

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_s K(t, s) x_s."""
        return torch.einsum("...ts,s...->t...", matrix, operands["input"].to(matrix.dtype))

    def impulse_response(self, decay: Tensor, time: int) -> Tensor:
        """a^0, a^1, … a^(T−1): the convolution that a constant decay makes, time first."""
        steps = torch.arange(time, device=decay.device)
        return decay ** steps.reshape(-1, *(1,) * decay.dim())

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return self._sample((5, 2, 3), (2, 3) if self.constant else (5, 2, 3), "initial" in roles)

    def _sample(self, shape: tuple[int, ...], decay: tuple[int, ...], initial: bool = True) -> Sample:
        draws = {"decay": Draw(decay, "fraction"), "input": Draw(shape)}
        if initial:
            draws["initial"] = Draw(shape[1:])
        return Sample(Spec(self, Past(), "linear recurrence", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """A multiply-add an entry and step (four of each where complex)."""
        each = 8 if outputs[0].is_complex() else 2
        return Work(each * int(operands["input"].numel()), moved_bytes(operands, outputs))

    @classmethod
    def samples(cls) -> list[Sample]:
        return [
            cls()._sample((7, 3, 4), (7, 3, 4)),
            cls()._sample((7, 3, 4), (7, 1, 4), initial=False),
            cls()._sample((63, 7), (63, 1)),
            cls()._sample((1, 1), (1, 1)),
            cls()._sample((0, 3), (0, 3)),
            cls()._sample((4, 0), (4, 0)),
            cls(constant=True)._sample((9, 2, 3), (3,)),
            cls(constant=True)._sample((7, 63), (63,), initial=False),
            cls(reverse=True)._sample((7, 3), (7, 3)),
            cls(reverse=True, constant=True)._sample((6, 2), (2,)),
        ]


def segment_products(factors: Tensor) -> Tensor:
    """P[t, s] = Π_{s<τ≤t} a_τ for s ≤ t, else 0, from a (…, T): products, not differences of logarithms."""
    time = factors.shape[-1]
    below = torch.ones(time, time, dtype=torch.bool, device=factors.device).tril(-1)
    spread = factors[..., None].expand(*factors.shape, time).masked_fill(~below, 1.0)
    return torch.cumprod(spread, -2).masked_fill(~(below | torch.eye(time, dtype=torch.bool, device=below.device)), 0.0)


def moved_bytes(operands: Operands, outputs: tuple[Tensor, ...]) -> int:
    """Bytes of all tensors read and written once."""
    tensors = [value for value in (*operands.values(), *outputs) if isinstance(value, Tensor)]
    return sum(int(tensor.numel()) * tensor.element_size() for tensor in tensors)
