"""Family ``semiseparable``: RWKV's average of values, weighted by exponentials of keys that decay with distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Past
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .semiseparable import moved_bytes

__all__ = ["WeightedAverage"]


@dataclass(frozen=True)
class WeightedAverage(Kernel):
    """The wkv of RWKV-4 (arXiv:2305.13048, equation 16), each channel on its own, with w = −exp(decay):

        y_t = (e^{u + k_t} v_t + n_{t−1}) / (e^{u + k_t} + d_{t−1})
        n_t = e^w n_{t−1} + e^{k_t} v_t,    d_t = e^w d_{t−1} + e^{k_t}

        K(t, s) = e^{k_s + (t − 1 − s) w} / Z_t where s < t,  e^{u + k_t} / Z_t where s = t

    The states n and d are kept as ``numerator`` · e^m and ``denominator`` · e^m with the ``maximum`` m_t =
    max(m_{t−1} + w, k_t), so that nothing overflows.

    Operands: ``decay`` and ``bonus`` u [D]; ``key`` and ``value`` [Bt, T, D]; where there, all three of
    ``numerator``, ``denominator``, ``maximum`` [Bt, D]. Returns y [Bt, T, D] in the dtype of the key, and the last
    three states in at least float32, in which all is computed.
    """

    family: ClassVar[str] = "semiseparable"
    value_map: ClassVar[str] = "value"
    time_axis: ClassVar[int] = 1

    def properties(self, domain: Domain) -> frozenset[str]:
        return frozenset({"linear", "causal"})

    def prepared(self, **operands: Any) -> dict[str, Tensor]:
        """The operands in one dtype, w for ``decay``, and states where there are none."""
        dtype = torch.float32
        for role in ("decay", "key", "value"):
            dtype = torch.promote_types(dtype, operands[role].dtype)
        made = {role: one.to(dtype) for role, one in operands.items()} | {
            "decay": -torch.exp(operands["decay"]).to(dtype)
        }
        if "maximum" not in made:
            rows = made["key"].new_zeros((made["key"].shape[0], made["key"].shape[2]))
            made |= {"numerator": rows, "denominator": rows, "maximum": rows - _LEAST}
        return made

    def evaluate(self, domain: Domain, **operands: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """A plain loop over time."""
        assert domain == Past()
        given = self.prepared(**operands)
        w, u, n, d, m = (given[role] for role in ("decay", "bonus", "numerator", "denominator", "maximum"))
        outputs = [given["value"][:, :0]]
        for k, v in zip(given["key"].unbind(1), given["value"].unbind(1), strict=True):
            top = torch.maximum(m, u + k)
            past, now = torch.exp(m - top), torch.exp(u + k - top)
            outputs.append(((past * n + now * v) / (past * d + now))[:, None])
            top = torch.maximum(m + w, k)
            past, now = torch.exp(m + w - top), torch.exp(k - top)
            n, d, m = past * n + now * v, past * d + now, top
        return torch.cat(outputs, 1).to(operands["key"].dtype), n, d, m

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, (Bt, D, T, T), without a state before: a softmax over the past."""
        given = self.prepared(**operands)
        key = given["key"].transpose(1, 2)
        steps = torch.arange(key.shape[-1], device=key.device)
        distance = steps[:, None] - steps
        scores = key[:, :, None, :] + (distance - 1) * given["decay"][:, None, None]
        scores = torch.where(distance == 0, (key + given["bonus"][:, None])[:, :, None, :], scores)
        return torch.softmax(scores.masked_fill(distance < 0, -torch.inf), -1)

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_s K(t, s) v_s."""
        return torch.einsum("bdts,bsd->btd", matrix, operands["value"])

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        return self._sample(2, 5, 3, "maximum" in roles)

    def _sample(self, batch: int, time: int, channels: int, initial: bool = False) -> Sample:
        sequence, state = (batch, time, channels), (batch, channels)
        draws = {"decay": Draw((channels,)), "bonus": Draw((channels,)), "key": Draw(sequence), "value": Draw(sequence)}
        if initial:
            draws |= {"numerator": Draw(state), "denominator": Draw(state, "fraction"), "maximum": Draw(state)}
        return Sample(Spec(self, Past(), "weighted average", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Four exponentials (10 flops each) and a dozen operations an entry."""
        return Work(52 * int(operands["key"].numel()), moved_bytes(operands, outputs))

    @classmethod
    def samples(cls) -> list[Sample]:
        return [
            cls()._sample(2, 7, 4),
            cls()._sample(2, 63, 3, initial=True),
            cls()._sample(1, 1, 1, initial=True),
            cls()._sample(1, 1, 7),
            cls()._sample(0, 3, 2),
        ]


# Of the source: no exponent is as small.
_LEAST = 1e38
