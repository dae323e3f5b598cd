"""Where the fused operator would lose digits of gradients, attention stays written out; elsewhere it is fused."""

import copy

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.runtime import digits


class Common(nn.Module):
    """Keys that share a part of size ``common``; queries alone are learned."""

    def __init__(self, common):
        super().__init__()
        self.common = common
        self.query, self.key, self.value = (nn.Linear(16, 16, bias=False) for _ in range(3))
        self.key.requires_grad_(False)
        self.value.requires_grad_(False)

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value))
        k = k + self.common
        return ((q @ k.mT) * 8**-0.5).softmax(-1) @ v


def _slopes(network, x):
    out = network(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    found = torch.autograd.grad((out * weights).sum(), [network.query.weight])
    return torch.cat([one.flatten().double() for one in found])


@pytest.mark.parametrize("common", [0.0, 30.0])
def test_gradients_keep_their_digits(common):
    torch.manual_seed(0)
    model, x = Common(common), torch.randn(2, 40, 16)
    unified = itnet.unify(model, x)
    (node,) = unified.integrals.values()
    assert node.kernel.unfused is (common > 0)
    assert ("lose digits" in node.source()) is (common > 0)
    assert ("lose digits" in node.plan.note) is (common > 0)
    exact = _slopes(copy.deepcopy(model).double(), x.double())
    own, ours = ((_slopes(network, x) - exact).norm() / exact.norm() for network in (model, unified))
    assert ours <= 2 * own + 1e-6
    again = copy.deepcopy(unified)
    assert torch.equal(_slopes(again, x), _slopes(unified, x))
    unified.reset()
    assert node.kernel.unfused is (common > 0)


def test_float64_is_not_asked_where_nothing_shows(monkeypatch):
    def asked(*_):
        raise AssertionError("a run in float64")

    monkeypatch.setattr(digits, "gradient_errors", asked)
    itnet.unify(Common(0.0), torch.randn(2, 40, 16))
