"""Affine recurrences δ_t = J_t δ_{t−1} + r_t with δ_{−1} = 0, all steps in parallel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["block_scan", "diagonal_scan", "matrix_scan"]

Product = Callable[[Tensor, Tensor], Tensor]


def matrix_scan(jacobians: Tensor, offsets: Tensor) -> Tensor:
    """For J (T, …, n, n) and r (T, …, n)."""
    return _scan(jacobians, offsets.unsqueeze(-1), torch.matmul).squeeze(-1)


def block_scan(jacobians: Tensor, offsets: Tensor) -> Tensor:
    """For J (T, k, k, …), a small matrix for each of many places, and r (T, k, …)."""
    return _scan(jacobians, offsets.unsqueeze(2), _block_product).squeeze(2)


def diagonal_scan(jacobians: Tensor, offsets: Tensor) -> Tensor:
    """For J and r of one shape (T, …)."""
    found: Tensor = torch.ops.itnet.linear_scan(jacobians, offsets)[0]
    return found


def _block_product(left: Tensor, right: Tensor) -> Tensor:
    """(T, k, m, …) times (T, m, l, …): sums over few terms, each of many numbers."""
    return (left.unsqueeze(3) * right.unsqueeze(1)).sum(2)


def _scan(jacobians: Tensor, offsets: Tensor, product: Product) -> Tensor:
    """Neighbours are combined, the recurrence of half the length is solved, and the steps between are filled in."""
    if offsets.shape[0] < 2:
        return offsets
    later = jacobians[1::2]
    first, second = offsets[0::2][: later.shape[0]], offsets[1::2]
    odd = _scan(product(later, jacobians[0::2][: later.shape[0]]), product(later, first) + second, product)
    found = torch.empty_like(offsets)
    found[0], found[1::2] = offsets[0], odd
    even = offsets[2::2]
    found[2::2] = product(jacobians[2::2], odd[: even.shape[0]]) + even
    return found
