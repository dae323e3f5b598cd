"""Normalisation of the heads of an integral transform that can be unlearned."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["HeadNorm"]


class HeadNorm(nn.Module):
    """z ← z / r(z)^a in each head, for the root of the mean square r over its channels.

    At a = 1, where it starts, each head has mean square 1, whatever the number of sources it is summed from. At a = 0
    it is the identity, so that a transform can learn to be linear in its source: r alone would take the amplitude of a
    function away. a is learned, one number a head.

    Args:
        heads: H.
    """

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.power = nn.Parameter(torch.ones(heads))

    def forward(self, z: Tensor) -> Tensor:
        """(…, H, V), normalised over V; computed in float32 at least."""
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        square = wide.square().mean(-1, keepdim=True) + 1e-12
        return (wide * square.pow(-0.5 * self.power.to(wide.dtype).unsqueeze(-1))).to(z.dtype)

    def extra_repr(self) -> str:
        return f"heads={len(self.power)}"
