"""What is required of every match, whatever the rule: its region runs under one mode."""

import torch
from torch import Tensor, nn

import itnet


class Attention(nn.Module):
    """Attention written out, its weights within ``no_grad`` or all of it."""

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.whole, self.project = whole, nn.Linear(8, 24)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.project(x).chunk(3, -1)
        with torch.no_grad():
            weights = torch.softmax(q @ k.transpose(-2, -1) / 8**0.5, -1)
            if self.whole:
                return x + weights @ v
        return x + weights @ v


def test_attention_across_the_edge_of_a_region_is_left_alone():
    x = torch.randn(2, 5, 8)
    unified = itnet.unify(model := Attention(False), x)
    assert torch.equal(unified(x), model(x))
    assert not unified.integrals
    assert "it runs under different modes: aten.matmul.default under the mode of the caller" in str(unified.report())
    assert "under no_grad" in str(unified.report())


def test_attention_within_a_region_is_an_integral():
    x = torch.randn(2, 5, 8)
    unified = itnet.unify(model := Attention(True), x)
    torch.testing.assert_close(unified(x), model(x))
    assert not unified(x).requires_grad
    (node,) = unified.integrals.values()
    assert node.origin == "attention" and node.verification.status == "verified"
