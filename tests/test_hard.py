"""Networks that torch.export cannot take whole: unify does not raise, and captures what can be captured."""

import copy
import statistics

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import itnet
from tests import foreign
from tests.foreign import hard

shares: dict[str, float] = {}  # of the parameters, captured; by network


def call(model, args, kwargs, seed=0):
    torch.manual_seed(seed)
    return model(*copy.deepcopy(args), **copy.deepcopy(kwargs))


def tensors(value):
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        if not torch.equal(a, b):
            assert a.is_floating_point(), "they differ in values that are not real numbers"
            error = float((a.detach().double() - b.detach().double()).norm() / a.detach().double().norm())
            assert error < 1e-5, f"relative difference {error:.1e}"


def same_outputs(first, second):
    assert type(first) is type(second)
    same(tensors(first), tensors(second))


def gradients(model, args, kwargs):
    model.zero_grad()
    outputs = [t for t in tensors(call(model, args, kwargs)) if t.is_floating_point() and t.requires_grad]
    sum(t.pow(2).mean() for t in outputs).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=[pytest.mark.foreign, *([] if name in hard.OFTEN else [pytest.mark.exhaustive])])
        for name in hard.names()
    ],
)
def built(request):
    """The network's name, itself and unified, unified once for all tests of it."""
    if not foreign.available(hard.group_of(request.param)):
        pytest.skip(f"{hard.group_of(request.param)} is not installed")
    model, args, kwargs = hard.build(request.param)
    return request.param, model, itnet.unify(model, args, example_kwargs=kwargs, copy=True), args, kwargs


def test_same_forward(built):
    _, model, unified, args, kwargs = built
    same_outputs(call(model, args, kwargs), call(unified, args, kwargs))
    with torch.no_grad():
        same_outputs(call(model, args, kwargs, 1), call(unified, args, kwargs, 1))


def test_captured_parts(built):
    name, _, unified, _, _ = built
    assert unified.parts or name in hard.WHOLE_IN_EVAL
    shares[name] = unified.report().to_dict()["captured_parameters"]
    assert 0 < shares[name] <= 1


def test_same_checkpoint(built):
    _, model, unified, _, _ = built
    assert list(model.state_dict()) == list(unified.state_dict())
    assert [path for path, _ in model.named_modules()] == [path for path, _ in unified.named_modules()]


def test_same_training_step(built):
    name, model, unified, args, kwargs = built
    if name in hard.NO_TRAINING:
        pytest.skip("does not run, or not the same way twice, in train mode")
    model.train(), unified.train()
    try:
        same_outputs(call(model, args, kwargs), call(unified, args, kwargs))
        same(list(model.buffers()), list(unified.buffers()))
        expected, found = gradients(model, args, kwargs), gradients(unified, args, kwargs)
        assert expected.keys() == found.keys()
        if not all(torch.equal(a, b) for a, b in zip(expected.values(), found.values(), strict=True)):
            # As one vector: attention written out runs other kernels, and some gradients are 0 but for rounding.
            ours, theirs = (torch.cat([g.double().flatten() for g in each.values()]) for each in (expected, found))
            assert float((ours - theirs).norm() / ours.norm()) < 1e-3
    finally:
        model.eval(), unified.eval()


@pytest.mark.exhaustive
def test_most_parameters_are_captured():
    if len(shares) < 10:
        pytest.skip("too few of the networks were unified in this process")
    assert statistics.median(shares.values()) >= 0.9, shares
