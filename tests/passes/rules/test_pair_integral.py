"""Networks of integral transforms are unified: each transform is one node, with its program as the kernel."""

from __future__ import annotations

import pytest
import torch
from itnet.nn import IntegralTransform, ITNetBlock
from torch import nn

import itnet


@itnet.kernel
def scaled(pos_q, pos_k, feat_q, feat_k, *, params):
    return params["scale"] * torch.ones(4)


@pytest.mark.parametrize(
    ("options", "domain"),
    [
        ({"window": 3}, "band[-3:+3]"),
        ({"normalise": True}, "keys"),
        ({"causal": True}, "past keys"),
        (
            {"kernel": scaled, "params": {"scale": nn.Parameter(torch.full((4,), 0.5))}, "window": (2, None)},
            "band[-2:]",
        ),
    ],
    ids=["window", "normalise", "causal", "own kernel"],
)
def test_a_block_is_one_integral(options, domain):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 32), ITNetBlock(32, **options)).eval(), torch.randn(2, 13, 16)
    unified = itnet.unify(model, x)
    (node,) = unified.integrals.values()
    assert (node.family, node.origin, node.domain.describe()) == ("mlp", "integral transform", domain)
    assert node.verification.status == "verified"
    assert "# of each pair" in node.source() or options.get("kernel") is scaled
    longer = torch.randn(3, 20, 16)
    assert torch.equal(unified(longer), model(longer))
    itnet.lower(unified, method="tiled")
    assert node.plan.lowering == "tiled"
    assert torch.equal(unified(x), model(x))
    itnet.lower(unified, method="reference")
    torch.testing.assert_close(unified(x), model(x), rtol=1e-4, atol=1e-5)


def test_gradients_training_and_a_second_unify():
    torch.manual_seed(0)
    model, x = ITNetBlock(16, heads=2, dropout=0.1).train(), torch.randn(2, 9, 16)
    unified = itnet.unify(itnet.unify(model, x), x)
    for module in (model, unified):
        torch.manual_seed(1)
        module.zero_grad()
        module(x).square().sum().backward()
        module.seen = [parameter.grad.clone() for parameter in module.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(model.seen, unified.seen, strict=True))


def test_masks_weights_and_another_source_are_operands():
    torch.manual_seed(0)

    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.transform = IntegralTransform(16, source_dim=8)

        def forward(self, x, source, weights, mask):
            return self.transform(x, source, weights=weights, mask=mask)

    model = Cross().eval()
    inputs = (torch.randn(2, 5, 16), torch.randn(2, 7, 8), torch.rand(2, 7), torch.rand(2, 5, 7) < 0.7)
    unified = itnet.unify(model, inputs)
    (node,) = unified.integrals.values()
    assert {"value", "measure", "mask"} <= set(node.spec.operands)
    assert torch.equal(unified(*inputs), model(*inputs))


def test_a_name_that_is_taken_is_refused():
    text = '%0 [] input ["mask",0]\nreturn %0'

    class Odd(nn.Module):
        def forward(self, value, number):
            return torch.ops.itnet.integrate(value, [number], None, None, value[0, 0], text, False, -1, -1)

    model, inputs = Odd(), (torch.randn(1, 2, 5, 3), torch.tensor(2.0))
    unified = itnet.unify(model, inputs)
    assert not unified.integrals
    assert "taken name" in str(unified.report())
    torch.testing.assert_close(unified(*inputs), 2 * inputs[0].sum(2, keepdim=True).expand(1, 2, 5, 3))
