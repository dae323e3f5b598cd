"""Attention that was written out goes on as it was written where the fused operator rounds worse (promise 1)."""

import copy

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.errors import LoweringError


class Selects(nn.Module):
    """Attention of unit vectors to themselves; where it is sharp, its softmax is one-hot and has no slope at all."""

    def __init__(self, sharpness):
        super().__init__()
        self.sharpness, self.dropout = sharpness, nn.Dropout(0.0)
        self.point, self.other = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        p, v = (y.unflatten(-1, (1, 64)).transpose(1, 2) for y in (self.point(x), 100 * x))
        p = nn.functional.normalize(p, dim=-1)
        weights = (p @ p.transpose(-2, -1) * self.sharpness).softmax(-1)
        return self.dropout(weights @ v).transpose(1, 2).flatten(2) + 0.01 * self.other(x)


def unified(sharpness=1e6, **options):
    torch.manual_seed(0)
    model, x = Selects(sharpness).eval(), torch.randn(2, 9, 64)
    return model, itnet.unify(model, x, **options), x


def only(network):
    (node,) = network.integrals.values()
    return node


def slopes(model, x):
    model.zero_grad()
    y = model(x)
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
    y.backward(weights)
    return torch.cat([p.grad.detach().double().flatten() for p in model.parameters()])


def off(model, exact, x):
    return float((slopes(model, x) - exact).norm() / exact.norm())


def test_products_where_the_fused_operator_loses_digits():
    model, network, x = unified()
    assert only(network).plan.lowering == "products"
    assert "loses digits" in network.explain(only(network).name)
    assert "as it was written" in only(network).source()
    exact = slopes(copy.deepcopy(model).double(), x.double())
    own = off(model, exact, x)
    assert off(network, exact, x) <= 2 * own + 1e-6
    itnet.lower(network, method="library")  # what the user says comes last
    assert only(network).plan.lowering == "library" and off(network, exact, x) > 2 * own + 1e-6
    network.reset()
    assert only(network).plan.lowering == "products"


def test_fused_where_it_loses_nothing():
    _, network, _ = unified(sharpness=8.0)
    assert only(network).plan.lowering == "library" and "fused" in only(network).source()


def test_graphs_for_other_modes_and_copies_are_run_so_too():
    _, network, x = unified()
    network.train()(x)
    assert only(network).plan.lowering == "products"
    twin = copy.deepcopy(network)
    twin(x.double().float()), twin.eval()(x)
    assert only(twin).plan.lowering == "products"


def test_without_verification_nothing_is_compared():
    assert only(unified(verify=False)[1]).plan.lowering == "library"


def test_products_are_for_attention_that_was_written_out():
    network = itnet.unify(nn.Conv1d(2, 2, 3), torch.randn(1, 2, 9))
    with pytest.raises(LoweringError, match="not written as products"):
        itnet.lower(network, method="products")
