"""Where output positions meet source positions: gathering of windows, by plain indexing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["gather_windows", "maximum_of_windows"]


def gather_windows(source: Tensor, indices: Sequence[Tensor], outside: float) -> Tensor:
    """The source values that each output position sees.

    Args:
        source: [..., A₁ … A_r].
        indices: One [O_j, K_j] tensor a trailing axis: source position of every tap; A_j stands for "outside".
        outside: The value that a position outside the source holds.

    Returns:
        [..., O₁ … O_r, T] with T = K₁ ⋯ K_r, the last axis of the window fastest.
    """
    lead = source.dim() - len(indices)
    for axis, index in enumerate(indices):
        dim = lead + 2 * axis  # the axes before this one have become pairs (O, K)
        slot = source.new_full((*source.shape[:dim], 1, *source.shape[dim + 1 :]), outside)
        source = torch.cat([source, slot], dim).index_select(dim, index.flatten()).unflatten(dim, tuple(index.shape))
    outputs, taps = range(lead, source.dim(), 2), range(lead + 1, source.dim(), 2)
    return source.permute(*range(lead), *outputs, *taps).flatten(lead + len(indices))


def maximum_of_windows(source: Tensor, indices: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Largest value of each window and its flat position in the source grid; the first one where several are equal.

    Args:
        source: [..., A₁ … A_r].
        indices: As for ``gather_windows``; every window holds at least one position inside.

    Returns:
        values [..., O₁ … O_r] and int64 positions of the same shape.
    """
    windows = gather_windows(source, indices, float("-inf"))
    extents = source.shape[source.dim() - len(indices) :]
    positions = _flat_positions(indices, extents)
    values, choice = windows.max(-1)
    # A window of −inf alone: the first position inside it, never one of the padding.
    first = (positions >= 0).to(torch.int8).argmax(-1)
    choice = torch.where(values == float("-inf"), first, choice).unsqueeze(-1)
    flat = positions.expand(windows.shape).gather(-1, choice)
    return windows.gather(-1, choice).squeeze(-1), flat.squeeze(-1)


def _flat_positions(indices: Sequence[Tensor], extents: Sequence[int]) -> Tensor:
    """[O₁ … O_r, T]: flat position in the source grid of every tap, −1 outside."""
    rank = len(indices)
    flat = torch.zeros((1,) * 2 * rank, dtype=torch.int64, device=indices[0].device)
    inside = torch.ones_like(flat, dtype=torch.bool)
    for axis, (index, extent) in enumerate(zip(indices, extents, strict=True)):
        shape = [1] * 2 * rank
        shape[axis], shape[rank + axis] = index.shape
        flat = flat * extent + index.reshape(shape)
        inside = inside & (index < extent).reshape(shape)
    return torch.where(inside, flat, -1).flatten(rank)
