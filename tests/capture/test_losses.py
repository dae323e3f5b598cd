"""What a graph would silently lose is refused, with the reason."""

import random

import numpy as np
import pytest
import torch
from torch import nn

import itnet


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def stays(unified):
    """Reasons of the model itself for running its original code."""
    left = unified.report().to_dict()["left"]
    return "; ".join(left[0]["reasons"])


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_randomness_from_outside_torch_is_not_frozen(draw):
    class Lucky(nn.Module):
        def forward(self, x):
            return x * float(draw())

    before = random.getstate()
    unified = itnet.unify(Lucky(), torch.zeros(2))
    assert "random generator" in stays(unified)
    assert random.getstate() == before
    assert not torch.equal(unified(torch.ones(2)), unified(torch.ones(2)))


def test_a_mode_that_cannot_be_captured_runs_the_original_code():
    class OnlyWhenTraining(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv1d(3, 3, 3, padding=1)

        def forward(self, x):
            x = self.conv(x)
            return x * float(np.random.rand()) if self.training else x

    model, x = OnlyWhenTraining().eval(), torch.randn(2, 3, 5)
    unified = itnet.unify(model, x, copy=True)
    assert torch.equal(model(x), unified(x))
    for net in (model, unified):
        np.random.seed(0)
        net.train()(x).sum().backward()
    assert torch.equal(model.conv.weight.grad, unified.conv.weight.grad) and bool(model.conv.weight.grad.any())
    assert "random generator" in str(unified.report())


@pytest.mark.parametrize("package", ["flash_attn", "xformers", "mamba_ssm", "causal_conv1d", "fla"])
def test_a_kernel_of_another_package_stays_with_what_to_use_instead(package):
    kernel = type("Kernel", (StraightThrough,), {"__module__": f"{package}.ops.interface"})

    class Calls(nn.Module):
        def forward(self, x):
            return kernel.apply(x * 2)

    unified = itnet.unify(Calls(), torch.randn(3))
    assert f"a kernel of {package} (Kernel)" in stays(unified) and "to have it captured use" in stays(unified)
    x = torch.randn(3)
    assert torch.equal(unified(x), (x * 2).round())
