"""Family ``semiseparable``: recurrences whose state is a matrix, linear attention and the delta rule among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Past
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .semiseparable import moved_bytes, segment_products

__all__ = ["MatrixState"]

DECAYS = ("none", "scalar", "diagonal")


@dataclass(frozen=True)
class MatrixState(Kernel):
    """A memory of keys and values that decays.

        S_t = diag(a_t) S_{t−1} + k_t v_tᵀ,    y_t = S_tᵀ q_t,    K(t, s) = q_tᵀ (Π_{s<τ≤t} diag(a_τ)) k_s

    With no decay that is linear attention (arXiv:2006.16236), with a constant one RetNet (arXiv:2307.08621), with one
    number a step Mamba-2 (arXiv:2405.21060), with one a key feature gated linear attention (arXiv:2312.06635): masked
    attention without a softmax. With ``delta`` what the key already recalls is taken off the value, and written at
    the rate β_t (gated delta rule, arXiv:2412.06464):

        S_t = (I − β_t k_t k_tᵀ) diag(a_t) S_{t−1} + β_t k_t v_tᵀ
        K(t, s) = q_tᵀ (Π_{s<τ≤t} (I − β_τ k_τ k_τᵀ) diag(a_τ)) β_s k_s

    Operands: ``query`` and ``key`` […, T, K], ``value`` […, T, V]; where there, ``beta`` […, T, 1], ``decay``
    […, T, 1] or […, T, K] (factors, not logarithms) and ``initial`` […, K, V]. Leading axes broadcast. Returns y
    […, T, V] and the last state […, K, V].

    Attributes:
        decay: ``none``, ``scalar`` (one number a step) or ``diagonal`` (one for each key feature).
        delta: Whether it is the delta rule.
    """

    family: ClassVar[str] = "semiseparable"
    value_map: ClassVar[str] = "value"
    time_axis: ClassVar[int] = -2

    decay: str = "none"
    delta: bool = False

    def __post_init__(self) -> None:
        if self.decay not in DECAYS:
            raise ValueError(f"decay {self.decay!r} is none of {', '.join(DECAYS)}")

    def properties(self, domain: Domain) -> frozenset[str]:
        return frozenset({"linear", "causal"})

    def evaluate(self, domain: Domain, **operands: Any) -> tuple[Tensor, Tensor]:
        """A plain loop over time."""
        assert domain == Past()
        query, key, value = operands["query"], operands["key"], operands["value"]
        beta, decay, state = operands.get("beta"), operands.get("decay"), operands.get("initial")
        given = [one for one in (query, key, value, beta, decay, state) if one is not None]
        batch = torch.broadcast_shapes(*(one.shape[:-2] for one in given))
        shape = (*batch, key.shape[-1], value.shape[-1])
        state = value.new_zeros(shape) if state is None else state.expand(shape)
        outputs = [value[..., :0, :].expand(*batch, 0, value.shape[-1])]
        for t in range(query.shape[-2]):
            if decay is not None:
                state = decay[..., t, :, None] * state
            k, written = key[..., t, :], value[..., t, :]
            if beta is not None:
                written = beta[..., t, :] * (written - torch.einsum("...kv,...k->...v", state, k))
            state = state + k[..., :, None] * written[..., None, :]
            outputs.append(torch.einsum("...kv,...k->...v", state, query[..., t, :])[..., None, :])
        return torch.cat(outputs, -2), state

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, (…, T, T)."""
        query, key, decay = operands["query"], operands["key"], operands.get("decay")
        if self.delta:
            return self._delta_matrix(query, key, operands["beta"], decay)
        if decay is None:
            return torch.einsum("...tk,...sk->...ts", query, key).tril()
        products = segment_products(decay.transpose(-1, -2)).expand(*decay.shape[:-2], key.shape[-1], -1, -1)
        return torch.einsum("...tk,...kts,...sk->...ts", query, products, key)

    def _delta_matrix(self, query: Tensor, key: Tensor, beta: Tensor, decay: Tensor | None) -> Tensor:
        """Column s holds what a unit value at s leaves in the outputs."""
        time = query.shape[-2]
        identity = torch.eye(time, dtype=query.dtype, device=query.device)
        operands = {"query": query, "key": key, "value": identity, "beta": beta}
        if decay is not None:
            operands["decay"] = decay
        return self.evaluate(Past(), **operands)[0]

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_s K(t, s) v_s."""
        return matrix @ operands["value"]

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return self._sample((2, 3), 5, 4, 7, roles)

    def _sample(self, batch: tuple[int, ...], time: int, keys: int, values: int, roles: tuple[str, ...] = ()) -> Sample:
        draws = {
            "query": Draw((*batch, time, keys)),
            "key": Draw((*batch, time, keys), "unit" if self.delta else "float"),
            "value": Draw((*batch, time, values)),
        }
        if self.delta:
            draws["beta"] = Draw((*batch, time, 1), "fraction")
        if self.decay != "none":
            draws["decay"] = Draw((*batch, time, keys if self.decay == "diagonal" else 1), "fraction")
        if not roles or "initial" in roles:
            draws["initial"] = Draw((*batch, keys, values))
        origin = "delta rule" if self.delta else "linear attention"
        return Sample(Spec(self, Past(), origin, tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Two multiply-adds an entry of the state and step; with a decay a product, with the delta rule one more."""
        entries = int(outputs[0].numel()) * int(operands["query"].shape[-1])
        return Work((4 + (self.decay != "none") + 2 * self.delta) * entries, moved_bytes(operands, outputs))

    @classmethod
    def samples(cls) -> list[Sample]:
        some = ("query",)
        cases = []
        for delta in (False, True):
            for decay in DECAYS:
                kernel = cls(decay, delta)
                cases += [kernel._sample((2, 3), 7, 4, 5), kernel._sample((), 65, 3, 17, some)]
        return [
            *cases,
            cls()._sample((1,), 1, 1, 1),
            cls("scalar")._sample((2,), 63, 7, 1),
            cls("diagonal")._sample((0,), 3, 2, 4),
            cls("scalar", True)._sample((2,), 1, 63, 2),
            cls()._sample((2,), 0, 3, 4),
        ]
