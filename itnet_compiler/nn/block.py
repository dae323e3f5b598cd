"""Blocks of networks: a transform with its residual, and transforms beside other layers."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .transform import IntegralTransform

__all__ = ["ITNetBlock", "Relaxed"]


class ITNetBlock(nn.Module):
    """A pre-norm residual block around an integral transform T:

        u = norm(x)
        x ← x + W·(T(u) ⊙ silu(G·u))
        x ← x + MLP(norm(x))

    Args:
        dim: Features.
        heads: Of the transform.
        expansion: Hidden features of the MLP as a multiple of ``dim``.
        dropout: Probability with which a feature of either branch is zeroed in training.
        transform: A transform to use (several blocks may share one); by default one is made from ``options``.
        **options: Of ``IntegralTransform``.
    """

    def __init__(
        self,
        dim: int,
        heads: int = 4,
        *,
        expansion: float = 4.0,
        dropout: float = 0.0,
        transform: nn.Module | None = None,
        **options: Any,
    ) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.transform = IntegralTransform(dim, heads, **options) if transform is None else transform
        self.gate, self.join = nn.Linear(dim, dim), nn.Linear(dim, dim)
        hidden = max(1, round(expansion * dim))
        self.expand, self.contract = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor | None = None, **where: Any) -> Tensor:
        """x, (B, N, dim), after the block. ``source``, positions, weights and mask are those of the transform.

        A ``source`` is normalised as x is.
        """
        u = self.first(x)
        source = None if source is None else self.first(source)
        mixed = self.transform(u, source, **where) * F.silu(self.gate(u))
        x = x + self.dropout(self.join(mixed))
        return x + self.dropout(self.contract(F.gelu(self.expand(self.second(x)))))


class Relaxed(nn.Module):
    """y = base(x) + g·T(x): a layer made learnable as an integral transform, from where it is.

    g starts at 0, so that at first it computes what ``base`` does, and gradients reach g at once.

    Args:
        base: Any layer from (B, N, dim) to (B, N, dim).
        transform: T, of the same shapes.
        dim: Features; g has one number for each.
    """

    def __init__(self, base: nn.Module, transform: nn.Module, dim: int) -> None:
        super().__init__()
        self.base, self.transform = base, transform
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, **where: Any) -> Tensor:
        """(B, N, dim). Keywords are for the transform."""
        return self.base(x) + self.gate * self.transform(x, **where)
