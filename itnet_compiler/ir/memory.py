"""Family ``semiseparable``: matrix-state recurrences with the parametrisation and layout of the models that use them.

Each is a ``MatrixState`` whose operands are made from the model's own: time before heads, one key head for several
value heads, step sizes, logarithms of decays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .domain import Domain, Past
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .matrix_state import MatrixState
from .semiseparable import moved_bytes

__all__ = ["GatedDelta", "Memory", "StateSpaceDual"]


def _wide(tensor: Tensor) -> Tensor:
    """In the dtype in which such a recurrence accumulates: float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Memory(Kernel):
    """Base of the kernels here: what the state is made from, and what of it is returned."""

    time_axis: ClassVar[int] = 1

    def state(self) -> MatrixState:
        """The recurrence itself."""
        raise NotImplementedError

    def prepared(self, **operands: Any) -> dict[str, Tensor]:
        """Operands of ``state()``, [B, H, T, ·]."""
        raise NotImplementedError

    def finished(self, y: Tensor, last: Tensor, **operands: Any) -> tuple[Tensor, Tensor]:
        """What the node returns, from y [B, H, T, V] and the last state; its first result is contiguous."""
        raise NotImplementedError

    def run(self, recurrence: Callable[..., tuple[Tensor, Tensor]], **operands: Any) -> tuple[Tensor, ...]:
        """What the node returns, with ``recurrence`` (of ``state()`` and its operands) for the recurrence itself."""
        return self.finished(*recurrence(self.state(), **self.prepared(**operands)), **operands)

    def properties(self, domain: Domain) -> frozenset[str]:
        return frozenset({"linear", "causal"})

    def evaluate(self, domain: Domain, **operands: Any) -> tuple[Tensor, ...]:
        """The definition of the recurrence on what is made from the operands."""
        return self.run(lambda state, **made: state.evaluate(domain, **made), **operands)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, [B, H, T, T], as of ``state()``: it acts on its values."""
        return self.state().kernel_matrix(domain, **self.prepared(**operands))

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_s K(t, s) v_s, as the node returns it."""
        prepared = self.prepared(**operands)
        state = prepared["value"].new_zeros((*matrix.shape[:2], prepared["key"].shape[-1], prepared["value"].shape[-1]))
        return self.finished(matrix @ prepared["value"], state, **operands)[0]

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """As of ``MatrixState``, with every head counted."""
        source = operands["input"] if "input" in operands else operands["value"]
        steps = int(source.shape[0]) * int(source.shape[1])
        state = 1
        for size in outputs[1].shape[1:]:
            state *= int(size)
        each = 5 + 2 * self.state().delta
        return Work(each * steps * state, moved_bytes(operands, outputs))


@dataclass(frozen=True)
class StateSpaceDual(Memory):
    """Mamba-2 (arXiv:2405.21060, equation 2): a state [N, P] for each head, with one decay.

    With steps Δ = delta (+ delta_bias) (through softplus) clamped to ``limits``:

        h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t x_tᵀ,    y_t = h_tᵀ C_t + D x_t
        K(t, s) = C_tᵀ B_s exp(A Σ_{s<τ≤t} Δ_τ) Δ_s  (+ D where t = s)

    Operands: ``input`` x [Bt, T, H, P]; ``delta`` [Bt, T, H]; ``A`` [H]; ``B`` and ``C`` [Bt, T, G, N], where each of
    the G groups serves H / G consecutive heads; where there, ``D`` [H], ``delta_bias`` [H], ``initial`` [Bt, H, P, N].
    Returns y [Bt, T, H, P] and the last state [Bt, H, P, N], both in at least float32.

    Attributes:
        softplus: Whether Δ goes through softplus.
        limits: Smallest and largest Δ.
    """

    family: ClassVar[str] = "semiseparable"

    softplus: bool = False
    limits: tuple[float, float] = (0.0, float("inf"))

    def state(self) -> MatrixState:
        return MatrixState("scalar")

    def prepared(self, **operands: Any) -> dict[str, Tensor]:
        source, delta, initial = _wide(operands["input"]), operands["delta"], operands.get("initial")
        heads = source.shape[2]
        if (bias := operands.get("delta_bias")) is not None:
            delta = delta + bias.to(delta.dtype)
        delta = F.softplus(delta) if self.softplus else delta
        delta = torch.clamp(delta, *self.limits)
        B, C = (_wide(operands[role]) for role in ("B", "C"))
        B, C = (one.repeat_interleave(heads // one.shape[2], dim=2, output_size=heads) for one in (B, C))
        factors = torch.exp(operands["A"].to(source.dtype) * _wide(delta))
        made = {"query": C, "key": B, "value": source * _wide(delta)[..., None], "decay": factors[..., None]}
        made = {role: one.transpose(1, 2) for role, one in made.items()}
        return made if initial is None else made | {"initial": initial.to(source.dtype).transpose(-1, -2)}

    def finished(self, y: Tensor, last: Tensor, **operands: Any) -> tuple[Tensor, Tensor]:
        y, D = y.transpose(1, 2), operands.get("D")
        # The first term decides the order in memory, on which a view behind the node may rely.
        y = y.contiguous() if D is None else (D[..., None] * _wide(operands["input"])).contiguous() + y
        return y, last.transpose(-1, -2)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return self._sample(3, 5, (4, 2), 6, 7, roles)

    def _sample(
        self, batch: int, time: int, heads: tuple[int, int], width: int, states: int, roles: tuple[str, ...] = ()
    ) -> Sample:
        state = (batch, time, heads[1], states)
        everything = {
            "input": Draw((batch, time, heads[0], width)),
            "delta": Draw((batch, time, heads[0])),
            "A": Draw((heads[0],), "negative"),
            "B": Draw(state),
            "C": Draw(state),
            "D": Draw((heads[0],)),
            "delta_bias": Draw((heads[0],)),
            "initial": Draw((batch, heads[0], width, states)),
        }
        draws = {role: draw for role, draw in everything.items() if not roles or role in roles}
        return Sample(Spec(self, Past(), "state space dual", tuple(draws)), draws)

    @classmethod
    def samples(cls) -> list[Sample]:
        some = ("input", "delta", "A", "B", "C")
        return [
            cls(softplus=True)._sample(2, 7, (4, 2), 3, 5),
            cls()._sample(2, 65, (3, 3), 4, 2, some),
            cls(softplus=True, limits=(0.1, 1.5))._sample(1, 63, (4, 1), 1, 7, (*some, "D")),
            cls()._sample(1, 1, (1, 1), 1, 1),
            cls(softplus=True)._sample(0, 3, (2, 1), 4, 5),
        ]


@dataclass(frozen=True)
class GatedDelta(Memory):
    """The gated delta rule (arXiv:2412.06464, equation 10) with heads after time; Kimi's with a decay a key feature.

        S_t = (I − β_t k_t k_tᵀ) diag(exp(g_t)) S_{t−1} + β_t k_t v_tᵀ,    y_t = S_tᵀ q_t / √K

    Operands: ``query`` and ``key`` [Bt, T, G, K], where each of the G heads serves H / G consecutive ones of ``value``
    [Bt, T, H, V]; ``decay`` g, a logarithm, [Bt, T, H], or [Bt, T, H, K] with ``diagonal``; ``beta`` [Bt, T, H]; where
    there, ``initial`` [Bt, H, K, V]. Returns y [Bt, T, H, V] in the dtype of the query, and the last state [Bt, H, K,
    V] in at least float32, in which all is computed.

    Attributes:
        unit: Added to the squared length of queries and keys, by which they are then divided; None: they are not.
        diagonal: Whether every key feature has a decay of its own.
    """

    family: ClassVar[str] = "semiseparable"
    value_map: ClassVar[str] = "value"

    unit: float | None = None
    diagonal: bool = False

    def state(self) -> MatrixState:
        return MatrixState("diagonal" if self.diagonal else "scalar", delta=True)

    def prepared(self, **operands: Any) -> dict[str, Tensor]:
        query, key, value, decay, beta = (
            _wide(operands[role]).transpose(1, 2) for role in ("query", "key", "value", "decay", "beta")
        )
        if self.unit is not None:
            query, key = (one * torch.rsqrt((one * one).sum(-1, keepdim=True) + self.unit) for one in (query, key))
        groups, heads = key.shape[1], value.shape[1]
        if groups != heads:
            query, key = (one.repeat_interleave(heads // groups, dim=1, output_size=heads) for one in (query, key))
        factors = torch.exp(decay if self.diagonal else decay[..., None])
        made = {"query": query * query.shape[-1] ** -0.5, "key": key, "value": value}
        made |= {"beta": beta[..., None], "decay": factors}
        initial = operands.get("initial")
        return made if initial is None else made | {"initial": initial.to(value.dtype)}

    def finished(self, y: Tensor, last: Tensor, **operands: Any) -> tuple[Tensor, Tensor]:
        return y.to(operands["query"].dtype).transpose(1, 2).contiguous(), last

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return self._sample(3, 5, (4, 2), 6, 7, roles)

    def _sample(
        self, batch: int, time: int, heads: tuple[int, int], keys: int, values: int, roles: tuple[str, ...] = ()
    ) -> Sample:
        query = (batch, time, heads[1], keys)
        everything = {
            "query": Draw(query),
            "key": Draw(query, "unit" if self.unit is None else "float"),
            "value": Draw((batch, time, heads[0], values)),
            "decay": Draw((batch, time, heads[0], keys) if self.diagonal else (batch, time, heads[0]), "negative"),
            "beta": Draw((batch, time, heads[0]), "fraction"),
            "initial": Draw((batch, heads[0], keys, values)),
        }
        draws = {role: draw for role, draw in everything.items() if not roles or role in roles}
        return Sample(Spec(self, Past(), "gated delta rule", tuple(draws)), draws)

    @classmethod
    def samples(cls) -> list[Sample]:
        some = ("query", "key", "value", "decay", "beta")
        return [
            cls(1e-6)._sample(2, 7, (4, 2), 3, 5),
            cls()._sample(2, 65, (3, 3), 4, 2, some),
            cls(1e-6, diagonal=True)._sample(1, 63, (2, 2), 5, 1),
            cls()._sample(1, 1, (1, 1), 1, 1),
            cls(1e-6)._sample(0, 3, (2, 1), 4, 5),
        ]
