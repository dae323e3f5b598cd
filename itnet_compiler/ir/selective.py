"""Family ``semiseparable``: the selective state space of Mamba."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .domain import Domain, Past
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .semiseparable import moved_bytes, segment_products

__all__ = ["Selective"]


@dataclass(frozen=True)
class Selective(Kernel):
    """The selective scan (Mamba, arXiv:2312.00752, equation 2, discretised as there in section 3.6).

    With channels d and states n, steps Δ = delta (+ delta_bias) (through softplus):

        h_t[d, n] = exp(Δ_t[d] A[d, n]) h_{t−1}[d, n] + Δ_t[d] B_t[n] x_t[d]
        y_t[d]    = (Σ_n C_t[n] h_t[d, n] + D[d] x_t[d]) · silu(gate_t[d])

        K(t, s)[d] = Σ_n C_t[n] exp(A[d, n] Σ_{s<τ≤t} Δ_τ[d]) Δ_s[d] B_s[n]  (+ D[d] where t = s)  (· silu(gate_t[d]))

    Operands: ``input`` x and ``delta`` [Bt, D, T]; ``A`` [D, N]; ``B`` and ``C`` [Bt, N, T]; where there, ``D`` [D],
    ``gate`` [Bt, D, T], ``delta_bias`` [D], ``initial`` [Bt, D, N]. Returns y [Bt, D, T], with ``returns_state``
    also the last state. In half precision the state is kept in float32 and y rounded before D and the gate.

    Attributes:
        softplus: Whether Δ goes through softplus.
        returns_state: Whether the node returns (y, last state).
    """

    family: ClassVar[str] = "semiseparable"
    time_axis: ClassVar[int] = -1

    softplus: bool = False
    returns_state: bool = False

    def properties(self, domain: Domain) -> frozenset[str]:
        return frozenset({"linear", "causal"})

    def steps(self, delta: Tensor, delta_bias: Tensor | None) -> Tensor:
        """Δ."""
        if delta_bias is not None:
            delta = delta + delta_bias.to(delta.dtype)[..., None]
        return F.softplus(delta) if self.softplus else delta

    def finished(self, y: Tensor, last: Tensor, input: Tensor, D: Tensor | None, gate: Tensor | None) -> Any:
        """What the node returns, from Σ_n C_t h_t and the last state."""
        y = y.to(input.dtype)
        if D is not None:
            y = y + input * D[:, None]
        if gate is not None:
            y = y * F.silu(gate)
        return (y, last) if self.returns_state else y

    def evaluate(self, domain: Domain, **operands: Any) -> Any:
        """A plain loop over time."""
        assert domain == Past()
        source, A, B, C = (operands[role] for role in ("input", "A", "B", "C"))
        delta = self.steps(operands["delta"], operands.get("delta_bias"))
        state = operands.get("initial")
        if state is None:
            state = source.new_zeros((source.shape[0], *A.shape), dtype=torch.promote_types(source.dtype, A.dtype))
        outputs = [source[..., :0].to(state.dtype)]
        for x, step, b, c in zip(*(one.unbind(-1) for one in (source, delta, B, C)), strict=True):
            state = torch.exp(step[..., None] * A) * state + (step * x)[..., None] * b[:, None, :]
            outputs.append((state * c[:, None, :]).sum(-1, keepdim=True))
        return self.finished(torch.cat(outputs, -1), state, source, operands.get("D"), operands.get("gate"))

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, (Bt, D, T, T)."""
        A, B, C, D, gate = (operands.get(role) for role in ("A", "B", "C", "D", "gate"))
        assert A is not None and B is not None and C is not None
        delta = self.steps(operands["delta"], operands.get("delta_bias"))
        factors = torch.exp(delta[:, :, None, :] * A[:, :, None])
        matrix = torch.einsum("bnt,bdnts,bds,bns->bdts", C, segment_products(factors), delta, B)
        if D is not None:
            matrix = matrix + D[:, None, None] * torch.eye(delta.shape[-1], dtype=D.dtype, device=D.device)
        return matrix if gate is None else F.silu(gate)[..., None] * matrix

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_s K(t, s) x_s."""
        return torch.einsum("bdts,bds->bdt", matrix, operands["input"])

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return self._sample(2, 3, 5, 4, roles)

    def _sample(self, batch: int, channels: int, time: int, states: int, roles: tuple[str, ...] = ()) -> Sample:
        sequence, state = (batch, channels, time), (batch, states, time)
        everything = {
            "input": Draw(sequence),
            "delta": Draw(sequence) if self.softplus else Draw(sequence, "fraction"),
            "A": Draw((channels, states), "negative"),
            "B": Draw(state),
            "C": Draw(state),
            "D": Draw((channels,)),
            "gate": Draw(sequence),
            "delta_bias": Draw((channels,)),
            "initial": Draw((batch, channels, states)),
        }
        draws = {role: everything[role] for role in everything if role in (roles or tuple(everything)[:5])}
        return Sample(Spec(self, Past(), "selective scan", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """An exponential (10 flops), two multiply-adds and two products for every channel, state and step."""
        entries = int(operands["input"].numel()) * int(operands["A"].shape[1])
        return Work(16 * entries, moved_bytes(operands, outputs))

    @classmethod
    def samples(cls) -> list[Sample]:
        plain, full = cls(), cls(softplus=True, returns_state=True)
        every = ("input", "delta", "A", "B", "C", "D", "gate", "delta_bias", "initial")
        return [
            plain._sample(2, 3, 7, 4),
            plain._sample(1, 17, 5, 1),
            plain._sample(1, 1, 1, 1),
            plain._sample(0, 3, 4, 2),
            cls(returns_state=True)._sample(2, 5, 63, 3),
            cls(softplus=True)._sample(2, 3, 7, 16, (*every[:5], "D")),
            full._sample(2, 18, 6, 3, every),
            full._sample(1, 2, 65, 2, every),
        ]
