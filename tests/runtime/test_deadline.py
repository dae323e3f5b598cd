"""A backward pass that takes too long is given up."""

from __future__ import annotations

import time

import pytest
import torch

from itnet_compiler.runtime.deadline import TooSlow, backward_limited


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(0.05)
        return gradient


def _loop(x):
    for _ in range(20):
        x = Slow.apply(x)
    return x


def test_it_ends_at_the_first_node_after_the_deadline():
    x = torch.ones(3, requires_grad=True)
    y = _loop(x)
    began = time.monotonic()
    with pytest.raises(TooSlow), backward_limited([y], 0.1):
        torch.autograd.grad([y], [x], [torch.ones(3)], retain_graph=True)
    assert time.monotonic() - began < 0.7
    (slope,) = torch.autograd.grad([y], [x], [torch.ones(3)])
    assert torch.equal(slope, torch.ones(3)), "the hooks are gone after the block"


def test_in_time_nothing_changes():
    x = torch.ones(3, requires_grad=True)
    y = x * 2
    with backward_limited([y, x * 1], 10.0):
        (slope,) = torch.autograd.grad([y], [x], [torch.ones(3)])
    assert torch.equal(slope, torch.full((3,), 2.0))
