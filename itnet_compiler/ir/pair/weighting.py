"""From the numbers that a pair function gives to the kernel K: measure, domain, mask, softmax. The dense definition."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..domain import Domain, reach

__all__ = ["allowed_pairs", "apply_weights", "weighted"]


def allowed_pairs(domain: Domain, numbers: Tensor, mask: Tensor | None) -> Tensor | None:
    """bool, broadcasting to (B, N, M): the pairs of κ (…, N, M) that take part; None where all do."""
    before, after = reach(domain)
    if before is None and after is None:
        return mask
    queries, sources = numbers.shape[-2:]
    i = torch.arange(queries, device=numbers.device).unsqueeze(1)
    j = torch.arange(sources, device=numbers.device)
    near = torch.ones((queries, sources), dtype=torch.bool, device=numbers.device)
    near = near if before is None else near & (j >= i - before)
    near = near if after is None else near & (j <= i + after)
    return near if mask is None else near & mask


def weighted(numbers: Tensor, allowed: Tensor | None, measure: Tensor | None, normalise: bool) -> Tensor:
    """K(i, j), (B, H, N, M).

    Args:
        numbers: κ or s, (B, H, N, M), as the pair function gives them.
        allowed: bool, broadcasting to (B, N, M).
        measure: w_j of each source, (1 or B, M), or None for 1.
        normalise: K = w_j·κ(i, j), or with ``normalise`` w_j·exp(s(i, j)) / Σ_j' w_j'·exp(s(i, j')); 0 where not
            allowed. A query that may see no source has K = 0.
    """
    hidden = None if allowed is None else ~allowed.unsqueeze(-3)
    factor = None if measure is None else measure[:, None, None, :].to(numbers.dtype)
    if not normalise:
        kept = numbers if hidden is None else numbers.masked_fill(hidden, 0.0)
        return kept if factor is None else kept * factor
    if numbers.shape[-1] == 0:
        return numbers
    scores = numbers if hidden is None else numbers.masked_fill(hidden, -math.inf)
    peak = scores.detach().amax(-1, keepdim=True)
    weights = torch.exp(scores - peak.masked_fill(peak == -math.inf, 0.0))
    weights = weights if factor is None else weights * factor
    total = weights.sum(-1, keepdim=True)
    return weights / total.masked_fill(total == 0.0, 1.0)


def apply_weights(weights: Tensor, value: Tensor) -> Tensor:
    """Σ_j K(i, j)·v_j, (B, H, N, V), for K (B, H, N, M) and v (B, H, M, V)."""
    return torch.einsum("bhij,bhjv->bhiv", weights, value)
