"""``nn.Fold`` is an integral; taking windows apart is re-indexing."""

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.ir.fold import Fold


class Windows(nn.Module):
    def __init__(self, size, **options):
        super().__init__()
        self.size, self.options = size, options
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x):
        windows = nn.functional.unfold(x * self.scale, self.size, **self.options)
        return nn.functional.fold(windows.square(), x.shape[-2:], self.size, **self.options)


@pytest.mark.parametrize(("size", "options"), [(3, {"padding": 1}), ((2, 3), {"stride": 2}), (2, {"dilation": 2})])
def test_fold(size, options):
    model, x = Windows(size, **options), torch.randn(2, 3, 8, 9)
    unified = itnet.unify(model, x)
    (node,) = unified.integrals.values()
    assert isinstance(node.kernel, Fold) and node.verification.status == "verified"
    assert unified.report().to_dict()["coverage"] == 1.0
    for given in (x, torch.randn(1, 3, 12, 7)):
        assert torch.equal(unified(given), model(given))
    unified(x).sum().backward()
    assert model.scale.grad is not None
