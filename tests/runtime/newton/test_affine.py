"""Affine recurrences in parallel, against the recurrence."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.runtime.newton.affine import block_scan, diagonal_scan, matrix_scan


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 8, 63])
def test_they_are_the_recurrence(steps):
    generator = torch.Generator().manual_seed(steps)
    jacobians = torch.randn(steps, 5, 3, 3, generator=generator, dtype=torch.float64) / 2
    offsets = torch.randn(steps, 5, 3, generator=generator, dtype=torch.float64)
    for jacobian, scan in (
        (jacobians, matrix_scan),
        (torch.diag_embed(jacobians.diagonal(dim1=2, dim2=3)), None),
    ):
        state, wanted = torch.zeros(5, 3, dtype=torch.float64), []
        for each, offset in zip(jacobian, offsets, strict=True):
            state = (each @ state.unsqueeze(-1)).squeeze(-1) + offset
            wanted.append(state)
        exact = torch.stack(wanted)
        if scan is None:
            found = diagonal_scan(jacobian.diagonal(dim1=2, dim2=3), offsets)
        else:
            found = scan(jacobian, offsets)
            blocks = block_scan(jacobian.permute(0, 2, 3, 1), offsets.transpose(1, 2)).transpose(1, 2)
            torch.testing.assert_close(blocks, exact)
        torch.testing.assert_close(found, exact)
