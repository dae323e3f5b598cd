"""Reverse programs against autograd of the forward program."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.pair.adjoint import SEED, adjoint
from itnet_compiler.ir.pair.dense import run
from itnet_compiler.ir.pair.program import SHARED, Program
from itnet_compiler.ir.pair.split import distribute, stages
from tests.ir.pair.functions import FUNCTIONS
from tests.ir.pair.pairs import tensors, traced


def _core(name):
    """(core program, its inputs) of a function."""
    function, params = FUNCTIONS[name]
    found, inputs = traced(function, tensors(), params)
    cut = stages(distribute(found.program))
    given = {}
    for side in range(3):
        part = cut.of(side)
        made = run(part, {item.name: inputs[item.name] for item in part.inputs}, 2)
        given |= dict(zip(cut.names[side], made, strict=True))
    return cut.core, given


def _cotangents(reverse, given, seed):
    """By input: the cotangents summed over all pairs that share it."""
    results = run(reverse.program, given | {SEED: seed}, 2)
    found = {}
    for name, value in zip(reverse.inputs, results[1:], strict=False):
        kept = [axis for axis in (0, 1) if given[name].shape[axis] == 1]
        found[name] = value.sum(kept, keepdim=True) if kept else value
    for product in reverse.products:
        pair = Program(reverse.program.values, (product.left, product.right))
        left, right = (side.expand(4, 3, *side.shape[2:]) for side in run(pair, given | {SEED: seed}, 2))
        matrix = torch.einsum("...m,...n->mn", left, right)[None, None]
        found[product.matrix] = found.get(product.matrix, 0) + matrix
    return found


@pytest.mark.parametrize("name", sorted(set(FUNCTIONS) - {"of_the_query_alone", "of_nothing"}))
def test_cotangents_are_those_of_autograd(name):
    core, given = _core(name)
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in given.items()}
    (result,) = run(core, leaves, 2)
    seed = torch.randn(result.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad(result, list(leaves.values()), seed, allow_unused=True, materialize_grads=True)
    found = _cotangents(adjoint(core), given, seed)
    for key, gradient in zip(leaves, expected, strict=True):
        if key in found:
            torch.testing.assert_close(found[key], gradient)
        else:
            assert not gradient.any()


def test_only_what_is_wanted_is_computed():
    core, _ = _core("fourier")
    everything = adjoint(core)
    parts = frozenset(item.name for item in core.inputs if item.side != SHARED and item.shape == (5,))
    assert len(parts) == 1
    some = adjoint(core, parts)
    assert (set(some.inputs), some.products) == (parts, ())
    assert len(some.program.values) < len(everything.program.values) - 10


def test_ties_share_the_gradient_as_in_torch():
    def function(pos_q, pos_k, feat_q, feat_k):
        return torch.maximum(feat_q[:3], feat_q[:3] * 1.0 + 0 * feat_k[:3]) + feat_k.amax()

    given = tensors()
    given[3] = torch.ones_like(given[3])
    found, inputs = traced(function, given)
    reverse = adjoint(found.program)
    seed = torch.ones(4, 3, 3, dtype=torch.float64)
    leaves = {key: tensor.detach().requires_grad_() for key, tensor in inputs.items()}
    (result,) = run(found.program, leaves, 2)
    expected = torch.autograd.grad(result, [leaves["feat_q"], leaves["feat_k"]], seed)
    cotangents = _cotangents(reverse, inputs, seed)
    torch.testing.assert_close((cotangents["feat_q"], cotangents["feat_k"]), expected)
