"""Cumulative sums over positions are integrals, those over features are not."""

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.ir.cumulative import Cumulative


class Net(nn.Module):
    def __init__(self, axis):
        super().__init__()
        self.embed, self.norm, self.out, self.axis = nn.Embedding(9, 6), nn.LayerNorm(6), nn.Linear(6, 6), axis

    def forward(self, ids):
        return self.out(self.norm(self.embed(ids)).cumsum(self.axis))


@pytest.mark.parametrize(("axis", "found"), [(1, 1), (-2, 1), (2, 0), (0, 0)])
def test_cumulative_sum(axis, found):
    model, ids = Net(axis).eval(), torch.randint(0, 9, (3, 7))
    unified = itnet.unify(model, ids)
    assert sum(isinstance(node.kernel, Cumulative) for node in unified.integrals.values()) == found
    assert unified.report().to_dict()["coverage"] == 1.0
    for given in (ids, ids[:, :4]):
        assert torch.equal(unified(given), model(given))
