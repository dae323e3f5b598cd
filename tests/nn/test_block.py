"""Blocks: shapes, sharing, where relaxation starts."""

from __future__ import annotations

import torch
from itnet.nn import IntegralTransform, ITNetBlock, Relaxed
from torch import nn


def test_a_block_keeps_the_shape_and_every_parameter_learns():
    torch.manual_seed(0)
    block, x = ITNetBlock(32, window=4), torch.randn(2, 19, 32)
    y = block(x)
    assert y.shape == x.shape
    y.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in block.parameters())


def test_blocks_may_share_one_transform():
    shared = IntegralTransform(32)
    stack = nn.ModuleList(ITNetBlock(32, transform=shared) for _ in range(3))
    count = sum(parameter.numel() for parameter in stack.parameters())
    own = sum(parameter.numel() for parameter in shared.parameters())
    assert count < sum(p.numel() for p in ITNetBlock(32).parameters()) * 3 - own


def test_a_block_takes_another_source_and_a_mask():
    block, x, source = ITNetBlock(32, axes=2), torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    where = {"positions": torch.rand(2, 5, 2), "source_positions": torch.rand(2, 9, 2)}
    mask = torch.arange(9) < torch.tensor([[9], [3]])
    y = block(x, source, **where, mask=mask)
    source[1, 3:] = 7.0
    torch.testing.assert_close(block(x, source, **where, mask=mask), y)


def test_relaxation_starts_where_the_layer_is():
    torch.manual_seed(0)
    base, x = nn.Linear(32, 32), torch.randn(2, 7, 32)
    relaxed = Relaxed(base, IntegralTransform(32), 32)
    torch.testing.assert_close(relaxed(x), base(x))
    relaxed(x).sum().backward()
    assert relaxed.gate.grad.all()
    assert not relaxed.transform.out.weight.grad.any()
