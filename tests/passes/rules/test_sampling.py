"""``grid_sample`` is an integral, with positions and values of the network."""

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.ir.sampled import Sampled


class Sampler(nn.Module):
    """Values of a layer, at positions that another one computes."""

    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.values, self.offsets = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 2, 3, stride=2)

    def forward(self, x):
        positions = self.offsets(x).permute(0, 2, 3, 1)
        return nn.functional.grid_sample(self.values(x), positions, **self.options)


@pytest.mark.parametrize(
    "options",
    [
        dict(align_corners=False),
        dict(mode="nearest", align_corners=True),
        dict(mode="bicubic", padding_mode="reflection", align_corners=False),
    ],
    ids=str,
)
def test_values_at_computed_positions(options):
    model, x = Sampler(**options), torch.randn(2, 3, 8, 9)
    unified = itnet.unify(model, x)
    (node,) = (node for node in unified.integrals.values() if node.origin == "grid sample")
    assert isinstance(node.kernel, Sampled)
    assert node.verification.status == "verified"
    assert unified.report().coverage == 1.0
    for given in (x, torch.randn(1, 3, 12, 7)):
        assert torch.equal(unified(given), model(given))
    slopes = [
        torch.autograd.grad(one(x).square().sum(), model.parameters(), allow_unused=True) for one in (model, unified)
    ]
    for mine, theirs in zip(*slopes, strict=True):
        assert (mine is None and theirs is None) or torch.equal(mine, theirs)
