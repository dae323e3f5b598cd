"""Family ``semiseparable``: the matrix memory of xLSTM, whose gates are exponentials."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from .domain import Domain, Past
from .kernel import Draw, Operands, Sample, Spec, Work
from .matrix_state import MatrixState
from .memory import Memory
from .semiseparable import moved_bytes

__all__ = ["MatrixLSTM"]

# In place of log σ(f) where that is less, so that sums of them stay finite; e to its power is 0 in every dtype.
_LEAST = -1e6


@dataclass(frozen=True)
class MatrixLSTM(Memory):
    """The mLSTM of xLSTM (arXiv:2405.04517, equations 19 to 27), with forget gates σ(f).

        C_t = σ(f_t) C_{t−1} + e^{i_t} k_t v_tᵀ,    n_t = σ(f_t) n_{t−1} + e^{i_t} k_t
        y_t = C_tᵀ q_t / (max(|n_tᵀ q_t|, √K) + ε √K e^{m_t}),    m_t = max(log σ(f_t) + m_{t−1}, i_t)
        K(t, s) = q_tᵀ k_s e^{i_s} Π_{s<τ≤t} σ(f_τ) / (max(|n_tᵀ q_t|, √K) + ε √K e^{m_t})

    The states are kept as ``initial`` C · e^−m and ``normaliser`` n · e^−m with the ``maximum`` m, 0 at first, so that
    nothing overflows. The normaliser is computed as one more column of the memory, and m apart from both.

    Operands: ``query`` and ``key`` [Bt, H, T, K]; ``value`` [Bt, H, T, V]; ``input_gate`` i and ``forget_gate`` f
    [Bt, H, T]; where there, ``initial`` [Bt, H, K, V], ``normaliser`` [Bt, H, K] and ``maximum`` [Bt, H, 1]. Returns y
    [Bt, H, T, V] in the dtype of the query, and the last three states in at least float32, in which all is computed.

    Attributes:
        epsilon: ε, added to the denominator at the scale of the states.
    """

    family: ClassVar[str] = "semiseparable"
    value_map: ClassVar[str] = "value"
    time_axis: ClassVar[int] = 2

    epsilon: float = 1e-6

    def state(self) -> MatrixState:
        return MatrixState("scalar")

    def evaluate(self, domain: Domain, **operands: Any) -> tuple[Tensor, ...]:
        """A plain loop over time, as equations 19 to 27 have it."""
        assert domain == Past()
        given = _in_one_dtype(operands)
        q, k, v, i, f = (given[role] for role in _ROLES[:5])
        batch, heads, time, keys = k.shape
        C, n, m = (
            given[role] if role in given else k.new_zeros((batch, heads, *shape))
            for role, shape in (("initial", (keys, v.shape[-1])), ("normaliser", (keys,)), ("maximum", (1,)))
        )
        outputs = [v[:, :, :0]]
        for t in range(time):
            kept = F.logsigmoid(f[:, :, t, None])
            before, m = m, torch.maximum(kept + m, i[:, :, t, None])
            kept, written = torch.exp(kept + before - m), torch.exp(i[:, :, t, None] - m) * k[:, :, t]
            C = kept[..., None] * C + written[..., None] * v[:, :, t, None]
            n = kept * n + written
            query = q[:, :, t] * keys**-0.5
            numerator, denominator = torch.einsum("bhkv,bhk->bhv", C, query), (n * query).sum(-1, keepdim=True)
            y = numerator / (torch.maximum(denominator.abs(), torch.exp(-m)) + self.epsilon)
            outputs.append(y[:, :, None])
        return torch.cat(outputs, 2).to(operands["query"].dtype), C, n, m

    def run(self, recurrence: Callable[..., tuple[Tensor, Tensor]], **operands: Any) -> tuple[Tensor, ...]:
        """One recurrence for memory and normaliser, as seen from the running maximum.

        What a maximum is taken out of is divided by it again, so it is held fixed where gradients are taken; only ε and
        the states that are returned depend on it.
        """
        given = _in_one_dtype(operands)
        dtype, tops = given["query"].dtype, _maxima(given)
        y, last = recurrence(self.state(), **_prepared(given, tops.detach()))
        end = tops[..., -1:]
        denominator = torch.maximum(y[..., -1:].abs(), torch.exp(-tops[..., 1:, None].detach()).to(dtype))
        epsilon: float | Tensor = self.epsilon
        if tops.requires_grad:
            epsilon = epsilon * _one(tops[..., 1:, None]).to(dtype)
            last = last / _one(end).to(dtype)[..., None]
        y = (y[..., :-1] / (denominator + epsilon)).to(operands["query"].dtype)
        return y, last[..., :-1].contiguous(), last[..., -1].contiguous(), end.to(dtype)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, [Bt, H, T, T], without a state before."""
        given = _in_one_dtype(operands)
        tops = _maxima(given)
        matrix = self.state().kernel_matrix(domain, **_prepared(given, tops))
        least = torch.exp(-tops[..., 1:, None]).to(matrix.dtype)
        return matrix / (torch.maximum(matrix.sum(-1, keepdim=True).abs(), least) + self.epsilon)

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_s K(t, s) v_s."""
        return matrix @ operands["value"]

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return self._sample(3, 2, 5, 4, 7, roles)

    def _sample(self, batch: int, heads: int, time: int, keys: int, values: int, roles: tuple[str, ...] = ()) -> Sample:
        everything = {
            "query": Draw((batch, heads, time, keys)),
            "key": Draw((batch, heads, time, keys)),
            "value": Draw((batch, heads, time, values)),
            "input_gate": Draw((batch, heads, time)),
            "forget_gate": Draw((batch, heads, time)),
            "initial": Draw((batch, heads, keys, values)),
            "normaliser": Draw((batch, heads, keys)),
            "maximum": Draw((batch, heads, 1)),
        }
        draws = {role: draw for role, draw in everything.items() if not roles or role in roles}
        return Sample(Spec(self, Past(), "mlstm", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Five operations an entry of the memory and step, its further column too."""
        keys = int(operands["key"].shape[-1])
        rows = int(operands["key"].numel()) * (int(operands["value"].shape[-1]) + 1)
        return Work(5 * rows if keys else 0, moved_bytes(operands, outputs))

    @classmethod
    def samples(cls) -> list[Sample]:
        some = _ROLES[:5]
        return [
            cls()._sample(2, 2, 7, 4, 5),
            cls()._sample(2, 1, 63, 3, 4, some),
            cls(1e-2)._sample(1, 2, 65, 5, 1, some),
            cls()._sample(1, 1, 1, 1, 1, some),
            cls()._sample(0, 2, 3, 4, 5, some),
        ]


_ROLES = ("query", "key", "value", "input_gate", "forget_gate", "initial", "normaliser", "maximum")


def _in_one_dtype(operands: dict[str, Any]) -> dict[str, Tensor]:
    dtype = torch.float32
    for one in operands.values():
        dtype = torch.promote_types(dtype, one.dtype)
    return {role: one.to(dtype) for role, one in operands.items()}


def _maxima(given: dict[str, Tensor]) -> Tensor:
    """m_0 … m_T, [Bt, H, T + 1], in float64: with sums of log σ(f) taken out it is a maximum over the past."""
    sums = F.pad(F.logsigmoid(given["forget_gate"].double()).clamp(min=_LEAST).cumsum(-1), (1, 0))
    gate = given["input_gate"].double()
    start = given["maximum"].double() if "maximum" in given else gate.new_zeros((*gate.shape[:2], 1))
    return torch.cat([start, gate - sums[..., 1:]], -1).cummax(-1).values + sums


def _prepared(given: dict[str, Tensor], tops: Tensor) -> dict[str, Tensor]:
    """Operands of the recurrence, with a value of 1 for the normaliser, divided by e to the power of the maximum."""
    q, k, v, i, f = (given[role] for role in _ROLES[:5])
    before, after = tops[..., :-1], tops[..., 1:]
    made = {
        "query": q * q.shape[-1] ** -0.5,
        "key": k * torch.exp(i - after).to(k.dtype)[..., None],
        "value": F.pad(v, (0, 1), value=1.0),
        "decay": torch.exp(F.logsigmoid(f.double()) + before - after).to(k.dtype)[..., None],
    }
    if "initial" not in given and "normaliser" not in given:
        return made
    batch, heads, _, keys = k.shape
    C = given["initial"] if "initial" in given else v.new_zeros((batch, heads, keys, v.shape[-1]))
    n = given["normaliser"] if "normaliser" in given else v.new_zeros((batch, heads, keys))
    state = torch.cat([C, n[..., None]], -1)
    if "maximum" in given:
        state = state * _one(given["maximum"])[..., None]
    return made | {"initial": state}


def _one(exponent: Tensor) -> Tensor:
    """1, with the gradient of e to that power, divided by that power held fixed."""
    return torch.exp(exponent - exponent.detach())
