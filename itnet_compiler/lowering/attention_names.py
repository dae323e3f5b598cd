"""What the code generated for attention calls: fused operator, softmax, and what queries that see nothing get."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..ir.steps import LOW, padded

__all__ = ["NAMES"]


def _without_keys(output: Tensor, mask: Tensor) -> Tensor:
    """NaN for queries all of whose scores are −∞, as the formula gives: 0/0; a product, for NaN in gradients too."""
    nothing = mask.amax(-1, keepdim=True) == -math.inf
    return output * torch.where(nothing, math.nan, 1.0).to(output.dtype)


def _without_seen(output: Tensor, seen: Tensor, value: Tensor) -> Tensor:
    """Likewise where scores are replaced by −∞: values have NaN gradients then, queries and keys none."""
    nothing = torch.where(seen.any(-1, keepdim=True), 0.0, math.nan).to(output.dtype)
    total = value.sum(-2, keepdim=True)
    if total.size(1) != output.size(1):
        total = total.repeat_interleave(output.size(1) // total.size(1), 1)
    return torch.addcmul(output, nothing, total)


def _shifted(mask: Tensor) -> Tensor:
    """Rows of nothing but very low numbers raised to 0, which changes no weight.

    Otherwise the scores drown in them, and the backward of the fused operator takes exp of a difference that is lost.
    """
    peak = mask.detach().amax(-1, keepdim=True)
    return mask - peak.masked_fill((peak > LOW) | (peak == -math.inf), 0.0)


def _wide_softmax(scores: Tensor) -> Tensor:
    if scores.dtype in (torch.float16, torch.bfloat16):
        return _functions.softmax(scores, -1, dtype=torch.float32).to(scores.dtype)
    return _functions.softmax(scores, -1)


def _softmax_beside(scores: Tensor, sink: Tensor, wide: bool) -> Tensor:
    """Weights of the scores where ``sink`` takes part in the softmax."""
    both = torch.cat([scores, sink.to(scores.dtype).expand(*scores.shape[:-1], 1)], -1)
    return (_wide_softmax(both) if wide else _functions.softmax(both, -1))[..., :-1]


def _mixed(scores: Tensor, matrix: Tensor, place: int) -> Tensor:
    """Σ_h matrix[…, g, h]·scores[…, h, …, i, j]: one product of matrices a sample, without moving an axis."""
    last = scores.dim() - 3
    scores = scores if place == last else scores.movedim(place, last)
    summed = _functions.matmul(matrix, scores.flatten(-2)).unflatten(-1, scores.shape[-2:])
    return summed if place == last else summed.movedim(last, place)


_functions = torch._C._VariableFunctions
NAMES: dict[str, Any] = {
    name: getattr(_functions, name) for name in ("matmul", "softmax", "dropout", "tanh", "nan_to_num", "ones")
}
NAMES |= {
    "attention": torch._C._nn.scaled_dot_product_attention,
    "without_keys": _without_keys,
    "without_seen": _without_seen,
    "shifted": _shifted,
    "wide_softmax": _wide_softmax,
    "softmax_beside": _softmax_beside,
    "mixed": _mixed,
    "padded": padded,
    "bool": torch.bool,
    "inf": math.inf,
}
