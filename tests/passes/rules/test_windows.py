"""Convolutions written with ``unfold``: every spelling found, every near miss right, gradients too."""

import copy

import pytest
import torch

import itnet
from itnet_compiler.ir.window_sum import WindowSum
from tests.spellings.windows import NEAR_MISSES, SPELLINGS, Windows


def _apart(actual, expected):
    return float((actual - expected).detach().norm() / expected.detach().norm().clamp_min(1e-30))


def _same(model, unified, x):
    y, z = model(x), unified(x)
    assert y.shape == z.shape and _apart(z, y) < 1e-5
    weights = torch.randn_like(y)
    grads = [torch.autograd.grad((out * weights).sum(), list(model.parameters()), allow_unused=True) for out in (y, z)]
    for one, two in zip(*grads, strict=True):
        assert (one is None) == (two is None)
        assert one is None or _apart(two, one) < 1e-4


def _wider(x):
    """The same with other extents of everything but the channels."""
    shape = [size if size == 4 else size + 2 if place else size + 1 for place, size in enumerate(x.shape)]
    return torch.randn(shape)


@pytest.mark.parametrize("program", SPELLINGS, ids=str)
def test_spelling(program):
    torch.manual_seed(0)
    model, x = Windows(program), torch.randn(program.shape)
    unified = itnet.unify(model, x)
    found = [node for node in unified.integrals.values() if isinstance(node.kernel, WindowSum)]
    assert [node.family for node in found] == [program.family], unified.report()
    assert found[0].verification.status == "verified"
    _same(model, unified, x)
    if program.name not in ("sizes alike", "window as large as the source", "locally connected"):
        _same(model, unified, _wider(x))


@pytest.mark.parametrize("program", NEAR_MISSES, ids=str)
def test_near_miss(program):
    torch.manual_seed(0)
    model, x = Windows(program), torch.randn(program.shape)
    unified = itnet.unify(model, x)
    found = [node.family for node in unified.integrals.values() if isinstance(node.kernel, WindowSum)]
    assert found == ([program.family] if program.family else [])
    assert program.reason in str(unified.report())
    _same(model, unified, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("program", [SPELLINGS[0], SPELLINGS[-3]], ids=str)
def test_other_precisions_and_copies(program, dtype):
    torch.manual_seed(0)
    model, x = Windows(program).to(dtype), torch.randn(program.shape, dtype=dtype)
    unified = itnet.unify(model, x)
    bar = 1e-12 if dtype is torch.float64 else 2e-2
    assert _apart(unified(x).double(), model(x).double()) < bar
    again = itnet.unify(copy.deepcopy(unified), x)
    assert torch.equal(again(x), unified(x))
    empty = torch.randn((0, *program.shape[1:]), dtype=dtype)
    assert unified(empty).shape == model(empty).shape
