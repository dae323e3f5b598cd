"""Encoders: from data of one modality to features at positions with a measure."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import InputError
from ..nn.transform import grid

__all__ = ["Encoded", "Patches", "Points", "Tokens"]


@dataclass(frozen=True)
class Encoded:
    """A function given at points.

    Attributes:
        features: (B, N, dim).
        positions: (B or 1, N, axes).
        weights: Measure of each point, (B or 1, N); sums to 1 over the points of a sample, 0 for padding.
    """

    features: Tensor
    positions: Tensor
    weights: Tensor


def _measure(count: int, like: Tensor, mask: Tensor | None) -> Tensor:
    """1/N for each point, or 1/(points that are there)."""
    if mask is None:
        return like.new_full((1, count), 1.0 / max(1, count))
    kept = mask.to(like.dtype)
    return kept / kept.sum(1, keepdim=True).clamp_min(1.0)


class Patches(nn.Module):
    """Images (B, channels, height, width), in square patches on a grid on [0, 1]².

    Args:
        channels: Of the image.
        patch: Side of a patch.
        dim: Features of a patch.
    """

    axes = 2

    def __init__(self, channels: int, patch: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(channels, dim, patch, stride=patch)
        self.patch = patch

    def forward(self, image: Tensor) -> Encoded:
        """Raises ``InputError`` where patches do not tile the image."""
        height, width = image.shape[-2:]
        if height % self.patch or width % self.patch:
            raise InputError(
                f"patches of {self.patch} do not tile {height} × {width}", remedy="pad or resize the image"
            )
        features = self.project(image).flatten(2).mT
        positions = grid((height // self.patch, width // self.patch), features)
        return Encoded(features, positions, _measure(features.shape[1], features, None))


class Tokens(nn.Module):
    """Sequences of token numbers (B, N), one position a token.

    Args:
        vocabulary: How many tokens there are.
        dim: Features of a token.
        spacing: Distance from one token to the next; with the default, 64 tokens have length 1.
    """

    axes = 1

    def __init__(self, vocabulary: int, dim: int, *, spacing: float = 1 / 64) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, dim)
        self.spacing = spacing

    def forward(self, tokens: Tensor, mask: Tensor | None = None) -> Encoded:
        """``mask``: bool (B, N), False for padding."""
        features = self.embed(tokens)
        count = tokens.shape[1]
        positions = torch.arange(count, device=tokens.device, dtype=torch.float32)[None, :, None] * self.spacing
        return Encoded(features, positions, _measure(count, features, mask))


class Points(nn.Module):
    """Values at points anywhere: (B, N, channels) at (B or 1, N, axes).

    Args:
        channels: Values at a point.
        axes: Numbers in a position.
        dim: Features of a point.
    """

    def __init__(self, channels: int, axes: int, dim: int) -> None:
        super().__init__()
        self.project = nn.Linear(channels, dim)
        self.axes = axes

    def forward(self, values: Tensor, positions: Tensor, weights: Tensor | None = None) -> Encoded:
        """``weights``: quadrature weights (B or 1, N), 0 for padding; 1/N by default."""
        features = self.project(values)
        if weights is None:
            weights = _measure(values.shape[1], features, None)
        return Encoded(features, positions, weights)
