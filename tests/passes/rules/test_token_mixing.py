"""Linear layers over positions are integrals, those over features are not."""

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.ir.mixing import Mixing


class Mixer(nn.Module):
    """A patch embedding, then one way of mixing its tokens; 16 tokens of 16 channels."""

    def __init__(self, mix):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.tokens, self.channels, self.mix = nn.Linear(16, 16), nn.Linear(16, 16), mix

    def forward(self, x):
        x = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        return self.channels(x + self.mix(self, x))


SPELLINGS = {
    "transposed": lambda net, x: net.tokens(x.transpose(1, 2)).transpose(1, 2),
    "without_bias": lambda net, x: nn.functional.linear(x.mT, net.tokens.weight).mT,
    "permuted": lambda net, x: net.tokens(x.permute(0, 2, 1)).permute(0, 2, 1),
    "from_the_left": lambda net, x: net.tokens.weight @ x,
}
NEAR_MISSES = {
    "features": lambda net, x: net.tokens(x),
    "data_dependent": lambda net, x: (x @ x.transpose(1, 2)) @ x,
    "weights_alone": lambda net, x: x * (net.tokens.weight @ net.channels.weight).sum(),
    "flattened": lambda net, x: x + net.tokens(x.flatten(1)[:, :16]).unsqueeze(1),
}


def mixed(unified):
    return [node for node in unified.integrals.values() if isinstance(node.kernel, Mixing)]


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name):
    model, x = Mixer(SPELLINGS[name]).eval(), torch.randn(2, 3, 16, 16)
    unified = itnet.unify(model, x)
    (node,) = mixed(unified)
    assert node.origin == "token mixing" and node.verification.status == "verified"
    assert torch.equal(unified(x), model(x))
    assert unified.report().to_dict()["coverage"] == 1.0
    model.train()
    unified.train()
    assert torch.equal(unified(x), model(x))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name):
    model, x = Mixer(NEAR_MISSES[name]).eval(), torch.randn(2, 3, 16, 16)
    unified = itnet.unify(model, x)
    assert not mixed(unified)
    torch.testing.assert_close(unified(x), model(x))  # products of activations are linear attention
