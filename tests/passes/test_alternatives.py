"""Which sums over a stack are of alternatives, and which of positions; statistics that values are divided by."""

import pytest
import torch
from torch import nn

import itnet


class Program(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.one, self.two = nn.Conv1d(4, 4, 3, padding=1), nn.Conv1d(4, 4, 1)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.function(self, x)


def _branches(m, x):
    return torch.stack([m.one(x), m.two(x)], 1).sum(1)


def _mean_of_branches(m, x):
    return torch.stack([m.one(x).relu(), m.two(x)], -1).mean(-1)


def _first_tokens(m, x):
    return torch.stack([m.head(m.one(x)[..., 0]), m.head(m.two(x)[..., 0])], 0).mean(0)


def _positions(m, x):
    y = m.one(x)
    return torch.stack([m.head(y[..., 0]), m.head(y[..., 1])], 0).mean(0)


def _scaled(m, x):
    """The mean scaler of time series: by the mean of each sample, or that of all where a sample is empty."""
    total = x.abs().sum(-1, keepdim=True)
    whole = total.sum(0) / torch.clamp(torch.ones_like(total).sum(0), min=1)
    scale = torch.where(total > 0, total, whole).clamp(min=1e-6)
    return m.one(x / scale)


@pytest.mark.parametrize("function", [_branches, _mean_of_branches, _first_tokens, _scaled])
def test_nothing_is_left_that_mixes(function):
    unified = itnet.unify(Program(function).eval(), torch.randn(2, 4, 6))
    assert unified.report().to_dict()["coverage"] == 1.0, unified.report()


def test_a_mean_over_stacked_positions_counts():
    unified = itnet.unify(Program(_positions).eval(), torch.randn(2, 4, 6))
    assert unified.report().to_dict()["coverage"] < 1.0
