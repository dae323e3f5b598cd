"""A global stationary kernel, given as a function of the distance and applied by FFT, mixed with a local integral."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .kernels import MlpKernel

__all__ = ["Spectral"]


class Spectral(nn.Module):
    """The global half of ``kernel="spectral+local"`` and the gate between both:

        s_i = Σ_j w_j·κ_h(p_i − p_j)·v_j            over all j, or with ``causal`` j ≤ i
        z_i = g_i·norm(s_i) + (1 − g_i)·norm(l_i),   g_i = σ(G·x_i + c), one number a head

    for the local integral l. κ_h is a network of Fourier features of the distance alone, so that it is defined for any
    number of positions of a uniform grid, and s takes O(N log N).

    Args:
        dim: Features of x.
        heads: H.
        causal: Whether only sources up to the query's own index take part.
        **network: Of ``MlpKernel``.
    """

    def __init__(self, dim: int, heads: int, *, causal: bool = False, **network: Any) -> None:
        super().__init__()
        self.kernel = MlpKernel(heads, (0, 0), **network)
        self.gate = nn.Linear(dim, heads)
        self.causal = causal
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, value: Tensor, positions: Tensor, dense: bool = False) -> Tensor:
        """s, (B, H, N, V).

        Args:
            value: v with the weights in it, (B, H, N, V).
            positions: A uniform grid, (1, N, 1).
            dense: By the definition, N² numbers, instead of FFT.
        """
        length = value.shape[2]
        if not length:
            return value
        wide = torch.float64 if value.dtype == torch.float64 else torch.float32
        numbers = self._numbers(positions).to(wide)
        if dense:
            index = torch.arange(length, device=value.device)
            matrix = numbers[:, index.unsqueeze(1) - index + length - 1]
            return (matrix @ value.to(wide)).to(value.dtype)
        with torch.autocast(value.device.type, enabled=False):
            # A power of two is fast; of a symbolic length there is none.
            size = 1 << (2 * length - 2).bit_length() if isinstance(length, int) else 2 * length
            kernel = torch.fft.rfft(numbers, size).unsqueeze(-1)
            product = kernel * torch.fft.rfft(value.to(wide), size, dim=2)
            whole = torch.fft.irfft(product, size, dim=2)
        return whole[:, :, length - 1 : 2 * length - 1].to(value.dtype)

    def mixed(self, x: Tensor, spectral: Tensor, local: Tensor) -> Tensor:
        """z, (B, N, H, V), of both integrals in this layout and x (B, N, dim)."""
        gate = torch.sigmoid(self.gate(x)).unsqueeze(-1)
        return gate * spectral + (1 - gate) * local

    def _numbers(self, positions: Tensor) -> Tensor:
        """κ at the distances −(N − 1) … N − 1 of the grid, (H, 2N − 1)."""
        one = positions[:, :1]
        distances = torch.cat([one - positions.flip(1), positions[:, 1:] - one], 1)
        ends = (distances, torch.zeros_like(one), distances, one)
        found = self.kernel.kernel.numbers(**self.kernel.operands(ends), value=one.unsqueeze(1))[0, :, :, 0]
        if self.causal:
            ahead = torch.arange(found.shape[1], device=found.device) < positions.shape[1] - 1
            found = found.masked_fill(ahead, 0.0)
        return found
