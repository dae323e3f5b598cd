"""Family ``softmax``: attention, K(x, x') = exp(scale·⟨q(x), k(x')⟩ + b(x, x')) / Z(x), as the fused operator takes it.

Attention that is written out is the kernel ``Attention``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Keys
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["Softmax", "normalised"]


@dataclass(frozen=True)
class Softmax(Kernel):
    """Softmax attention over the keys of the domain.

    With queries q of shape (…, L, D), keys k (…, S, D), values v (…, S, V), leading axes broadcast:

        s(i, j) = scale·⟨q_i, k_j⟩ + b(i, j)        j in S(i); −∞ elsewhere
        K(i, j) = exp(s(i, j)) / Σ_j' exp(s(i, j'))
        y_i     = Σ_j K(i, j) · v_j                      (…, L, V)

    b is the operand ``mask``, broadcast to (…, L, S): floating and added, or boolean with True where i may attend to
    j. S(i) is all j, or j ≤ i where the domain is causal: aligned at the first position, as ``is_causal`` of
    ``scaled_dot_product_attention`` is. A query that may attend to no key (all scores −∞) has K = 0 and y = 0, as
    in PyTorch ≥ 2.5.

    Attributes:
        scale: Factor of the scores; None is 1/√D.
        dropout: Probability with which a weight is zeroed (the others scaled by 1/(1 − p)), as executed: 0 in eval.
        grouped: Whether axis −3 of key and value holds fewer heads than the query; each serves consecutive ones.
    """

    family: ClassVar[str] = "softmax"
    value_map: ClassVar[str] = "value"

    scale: float | None = None
    dropout: float = 0.0
    grouped: bool = False

    def properties(self, domain: Domain) -> frozenset[str]:
        """Normalised wherever a query has a key at all."""
        facts = {"linear"}
        if self.dropout == 0.0:
            facts.add("normalised")
        if isinstance(domain, Keys) and domain.causal:
            facts.add("causal")
        return frozenset(facts)

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """y. Dropout has the same distribution as the source's, not its stream."""
        weights = self.kernel_matrix(domain, **operands)
        if self.dropout > 0.0:
            weights = torch.dropout(weights, self.dropout, True)
        return self.apply_matrix(domain, weights, **operands)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, (…, L, S), before dropout."""
        return normalised(self.scores(domain, **operands), zero=True)

    def scores(self, domain: Domain, **operands: Any) -> Tensor:
        """s, (…, L, S)."""
        assert isinstance(domain, Keys)
        query, mask = operands["query"], operands.get("mask")
        key = self.all_heads(operands["key"], query)
        scale = 1.0 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale
        scores = torch.einsum("...id,...jd->...ij", query, key) * scale
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        elif mask is not None:
            scores = scores + mask.to(scores.dtype)
        if domain.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        return scores

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_j K(i, j)·v_j, (…, L, V)."""
        value = self.all_heads(operands["value"], operands["query"])
        return torch.einsum("...ij,...jv->...iv", matrix, value)

    def all_heads(self, tensor: Tensor, query: Tensor) -> Tensor:
        """Keys or values repeated along axis −3, so that there is one head for each of the query's."""
        if not self.grouped:
            return tensor
        return tensor.repeat_interleave(query.shape[-3] // tensor.shape[-3], dim=-3)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        batch, heads = ((3,), (6, 2)) if self.grouped else ((2,), (3, 3))
        draws = self._draws(batch, *heads, (4, 5), (7, 8), "mask" in roles)
        return Sample(Spec(replace(self, dropout=0.0), domain, "attention", roles), draws)

    def _draws(
        self,
        batch: tuple[int, ...],
        heads: int,
        key_heads: int,
        lengths: tuple[int, int],
        widths: tuple[int, int],
        masked: bool,
        kind: str = "float",
    ) -> dict[str, Draw]:
        """Operands of (*batch, heads, length, width)."""
        (queries, keys), (width, value_width) = lengths, widths
        draws = {
            "query": Draw((*batch, heads, queries, width)),
            "key": Draw((*batch, key_heads, keys, width)),
            "value": Draw((*batch, key_heads, keys, value_width)),
        }
        if masked:
            draws["mask"] = Draw((*batch, heads, queries, keys), kind)
        return draws

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """2·(D + V) flops for each pair of positions in the support, and 5 for its softmax.

        A causal support holds Σ_i min(i + 1, S) pairs, about half the rectangle; fused kernels skip the rest, up to
        their block size. Bytes are those of operands and outputs: a fused kernel stores no scores.
        """
        assert isinstance(domain, Keys)
        query, key, value = operands["query"], operands["key"], operands["value"]
        queries, keys = int(query.shape[-2]), int(key.shape[-2])
        pairs = queries * keys
        if domain.causal:
            short = min(queries, keys)
            pairs = short * (short + 1) // 2 + (queries - short) * keys
        batch = math.prod(int(size) for size in outputs[0].shape[:-2])
        flops = batch * pairs * (2 * (int(query.shape[-1]) + int(value.shape[-1])) + 5)
        moved = [*operands.values(), *outputs]
        return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        everywhere, past = Keys(), Keys(causal=True)

        def case(
            kernel: Softmax,
            domain: Keys = everywhere,
            batch: tuple[int, ...] = (2,),
            heads: tuple[int, int] = (3, 3),
            lengths: tuple[int, int] = (7, 7),
            widths: tuple[int, int] = (4, 4),
            kind: str = "",
        ) -> Sample:
            draws = kernel._draws(batch, *heads, lengths, widths, bool(kind), kind)
            return Sample(Spec(kernel, domain, "attention", tuple(draws)), draws)

        fused, wide = cls(), cls(grouped=True)
        return [
            case(fused),
            case(fused, batch=()),
            case(fused, batch=(2, 5)),
            case(fused, lengths=(1, 1)),
            case(fused, lengths=(63, 7), widths=(5, 8)),
            case(fused, lengths=(7, 63), widths=(8, 5), kind="float"),
            case(fused, lengths=(0, 7)),
            case(fused, batch=(0,)),
            case(fused, past),
            case(fused, past, lengths=(5, 9)),
            case(fused, past, lengths=(9, 5)),
            case(fused, kind="float"),
            case(fused, kind="mask"),
            case(fused, kind="bool"),
            case(fused, batch=(), kind="bool"),
            case(fused, lengths=(1, 9), kind="bool"),
            case(cls(scale=0.3), widths=(4, 6)),
            case(wide, heads=(6, 2)),
            case(wide, past, heads=(6, 3)),
            case(wide, heads=(4, 1), kind="bool"),
        ]


def normalised(scores: Tensor, *, zero: bool) -> Tensor:
    """exp(s) / Σ_j exp(s) over the last axis; rows that are all −∞ are 0 with ``zero``, else NaN."""
    if scores.shape[-1] == 0:
        return scores
    # Weights do not change when a constant is taken off a row; its maximum keeps exp from overflowing.
    peak = scores.detach().amax(-1, keepdim=True)
    if zero:
        peak = peak.masked_fill(peak == -math.inf, 0.0)
    weights = torch.exp(scores - peak)
    total = weights.sum(-1, keepdim=True)
    return weights / (total.masked_fill(total == 0.0, 1.0) if zero else total)
