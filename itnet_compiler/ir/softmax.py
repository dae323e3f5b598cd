"""Family ``softmax``: attention, K(x, x') = exp(scale·⟨q(x), k(x')⟩ + b(x, x')) / Z(x)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Keys
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["Softmax"]

FORMS = ("fused", "matmul", "bmm")


@dataclass(frozen=True)
class Softmax(Kernel):
    """Softmax attention over the keys of the domain.

    With queries q of shape (…, L, D), keys k (…, S, D), values v (…, S, V), leading axes broadcast:

        s(i, j) = scale / divisor · ⟨q_i, k_j⟩ + b(i, j)        j in S(i); −∞ elsewhere
        K(i, j) = exp(s(i, j)) / Σ_j' exp(s(i, j'))
        y_i     = Σ_j K(i, j) · v_j                      (…, L, V)

    b is the operand ``mask``, broadcast to (…, L, S): floating and added, or boolean with True where i may attend to
    j. S(i) is all j, or j ≤ i where the domain is causal: aligned at the first position, as ``is_causal`` of
    ``scaled_dot_product_attention`` is. A query that may attend to no key (all scores −∞) has K = 0 and y = 0 in the
    fused form, as in PyTorch ≥ 2.5; written out, 0/0 is NaN.

    Attributes:
        scale: Factor of the scores; None is 1/√D.
        dropout: Probability with which a weight is zeroed (the others scaled by 1/(1 − p)), as executed: 0 in eval.
        grouped: Whether axis −3 of key and value holds fewer heads than the query; each serves consecutive ones.
        returns_weights: Whether the weights, after dropout, (…, L, S), are a second output.
        form: How the source computes it, which fixes the rounding and what a query without keys gives: ``fused``
            (one operator), ``matmul`` (product, + mask, softmax, product) or ``bmm`` (the same over three axes with
            the mask as accumulator of the first product). The latter two take floating masks only.
        divisor: What the source divides the scores by where it does not multiply; 1 in the fused form.
    """

    family: ClassVar[str] = "softmax"
    value_map: ClassVar[str] = "value"

    scale: float | None = None
    dropout: float = 0.0
    grouped: bool = False
    returns_weights: bool = False
    form: str = "fused"
    divisor: float = 1.0

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ValueError(f"form {self.form!r} is none of {', '.join(FORMS)}")
        if self.form == "fused" and (self.returns_weights or self.divisor != 1.0):
            raise ValueError("the fused form neither returns weights nor divides scores")
        if self.form != "fused" and self.grouped:
            raise ValueError("the written-out forms have one key head for each query head")

    def properties(self, domain: Domain) -> frozenset[str]:
        """Normalised wherever a query has a key at all."""
        facts = {"linear"}
        if self.dropout == 0.0:
            facts.add("normalised")
        if isinstance(domain, Keys) and domain.causal:
            facts.add("causal")
        return frozenset(facts)

    def evaluate(self, domain: Domain, **operands: Any) -> Any:
        """y, or (y, K) with ``returns_weights``. Dropout has the same distribution as the source's, not its stream."""
        weights = self.kernel_matrix(domain, **operands)
        if self.dropout > 0.0:
            weights = torch.dropout(weights, self.dropout, True)
        output = self.apply_matrix(domain, weights, **operands)
        return (output, weights) if self.returns_weights else output

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K, (…, L, S), before dropout."""
        assert isinstance(domain, Keys)
        query, mask = operands["query"], operands.get("mask")
        key = self._all_heads(operands["key"], query)
        scale = 1.0 / math.sqrt(query.shape[-1]) if self.scale is None else self.scale
        scores = torch.einsum("...id,...jd->...ij", query, key) * (scale / self.divisor)
        if mask is not None and mask.dtype == torch.bool:
            scores = scores.masked_fill(~mask, -math.inf)
        elif mask is not None:
            scores = scores + mask.to(scores.dtype)
        if domain.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        if scores.shape[-1] == 0:
            return scores
        # K does not change when a constant is taken off a row; its maximum keeps exp from overflowing.
        peak = scores.detach().amax(-1, keepdim=True)
        if self.form == "fused":
            peak = peak.masked_fill(peak == -math.inf, 0.0)
        weights = torch.exp(scores - peak)
        total = weights.sum(-1, keepdim=True)
        if self.form == "fused":
            total = total.masked_fill(total == 0.0, 1.0)
        return weights / total

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_j K(i, j)·v_j, (…, L, V)."""
        value = self._all_heads(operands["value"], operands["query"])
        return torch.einsum("...ij,...jv->...iv", matrix, value)

    def _all_heads(self, tensor: Tensor, query: Tensor) -> Tensor:
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
        """Operands of (*batch, heads, length, width); the heads are the batch where ``bmm`` wants three axes."""
        (queries, keys), (width, value_width) = lengths, widths
        lead = () if self.form == "bmm" else batch
        draws = {
            "query": Draw((*lead, heads, queries, width)),
            "key": Draw((*lead, key_heads, keys, width)),
            "value": Draw((*lead, key_heads, keys, value_width)),
        }
        if masked:
            draws["mask"] = Draw((*lead, heads, queries, keys), kind)
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
        matmul = cls(scale=1.0, form="matmul")
        bmm = cls(scale=1.0, form="bmm")
        both = [replace(kernel, returns_weights=True) for kernel in (matmul, bmm)]
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
            case(matmul, lengths=(5, 7), widths=(4, 6)),
            case(matmul, lengths=(5, 7), kind="float"),
            case(matmul, batch=()),
            case(bmm, lengths=(5, 7), widths=(4, 6)),
            case(bmm, lengths=(5, 63), kind="float"),
            case(bmm, heads=(1, 1), lengths=(1, 1)),
            case(bmm, heads=(0, 0)),
            case(cls(scale=0.3, form="bmm"), kind="float"),
            case(cls(scale=0.3, form="bmm")),
            case(cls(scale=0.3, form="matmul"), kind="float"),
            case(cls(scale=1.0, form="matmul", divisor=1.7), lengths=(5, 7), kind="float"),
            *(case(kernel, lengths=(5, 7), widths=(4, 6), kind="float") for kernel in both),
            case(both[0], batch=(2, 1), lengths=(0, 7)),
        ]
