"""Depthwise convolutions over the positions of tensors whose features lie side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import itnet
from itnet_compiler.ir.domain import Window
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.stationary import Stationary
from itnet_compiler.lowering.base import find_lowering
from itnet_compiler.passes.rules.convolution import convolution
from tests.passes.regions import captured, propose_one

CHANNELS = 6


class Mixer(nn.Module):
    """A causal depthwise convolution, with what comes before and after it."""

    def __init__(self, after, before=lambda x: x.transpose(1, 2), **options):
        super().__init__()
        self.conv = nn.Conv1d(CHANNELS, CHANNELS, 4, padding=3, **({"groups": CHANNELS} | options))
        self.before, self.after = before, after

    def forward(self, x):
        return self.after(self.conv(self.before(x)), x)


def _written(y, x):
    turned = F.silu(y).transpose(1, 2)
    copied = turned.contiguous()
    copied.add_(1)
    return turned.sum() + copied


FREE = {
    "mamba": lambda y, x: F.silu(y[..., : x.shape[1]]).transpose(1, 2) * x,
    "split": lambda y, x: sum(part.reshape(2, -1) for part in y.permute(0, 2, 1).split(3, -1)),
    "viewed": lambda y, x: y.transpose(2, 1).view(*y.shape[::2], 2, 3).sum(2),
}
BOUND = {
    "a view of channels and positions": lambda y, x: y.view(y.shape[0], -1) * 2,
    "the result used as it is": lambda y, x: (y.transpose(1, 2) * 2, y * 2),
    "returned": lambda y, x: y.transpose(1, 2),
    "returned, copied": lambda y, x: (y.transpose(1, 2).contiguous(), x * 2),
    "written to": _written,
}


@pytest.mark.parametrize("name", FREE)
def test_between_transpositions_the_layout_is_free(name):
    torch.manual_seed(0)
    module, x = Mixer(FREE[name]), torch.randn(2, 9, CHANNELS)
    unified = itnet.unify(module, (x,))
    (node,) = [one for one in unified.integrals.values() if one.origin == "conv1d"]
    assert node.kernel.features_last
    assert node.verification.status == "verified"
    given = (x.transpose(1, 2), module.conv.weight, module.conv.bias)
    assert node.executable.function(*given).stride(1) == 1
    for given in (x, torch.randn(1, 1, CHANNELS), torch.randn(3, 17, CHANNELS), x.mT.contiguous().mT):
        torch.testing.assert_close(unified(given), module(given))
    grads = [torch.autograd.grad(run(x).square().sum(), module.conv.weight)[0] for run in (unified, module)]
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("name", BOUND)
def test_elsewhere_it_is_not(name):
    graph = captured(Mixer(BOUND[name]), torch.randn(2, 9, CHANNELS))
    assert not propose_one(graph, convolution).spec.kernel.features_last


def test_it_is_for_depthwise_convolutions_of_transposed_tensors():
    x = torch.randn(2, 9, CHANNELS)
    dense = captured(Mixer(FREE["split"], groups=1), x)
    upright = captured(Mixer(lambda y, x: y.transpose(1, 2) * 2, before=lambda x: x * 2), x.mT)
    for graph in (dense, upright):
        assert not propose_one(graph, convolution).spec.kernel.features_last


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(2, 9, 6), (1, 1, 6), (3, 63, 1), (0, 9, 6), (1, 7, 63)], ids=str)
def test_the_layout_changes_nothing(shape, dtype):
    channels = shape[2]
    spec = Spec(
        Stationary(groups=channels, features_last=True),
        Window((4,), (1,), ((3, 3),), (1,)),
        "conv1d",
        ("input", "weight", "bias"),
    )
    function = find_lowering("library").build(spec).function
    rows, weight, bias = (
        torch.randn(shape, dtype=dtype),
        torch.randn(channels, 1, 4, dtype=dtype),
        torch.randn(channels),
    )
    for given in (rows, torch.randn(*shape[:2], channels + 5, dtype=dtype)[..., :channels], rows.mT.contiguous().mT):
        leaves = [one.to(dtype).requires_grad_() for one in (given, weight, bias)]
        results = []
        for run in (function, lambda *args: torch.conv1d(*args, padding=3, groups=channels)):
            y = run(leaves[0].mT, *leaves[1:])
            results.append([y, *torch.autograd.grad(y.float().square().sum(), leaves)])
        for mine, theirs in zip(*results, strict=True):
            torch.testing.assert_close(mine, theirs)
