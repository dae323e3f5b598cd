"""Linear maps are applied part by part, and what is of one side is taken out: the function stays the same."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.pair.dense import run
from itnet_compiler.ir.pair.program import PAIR, QUERY, SHARED, SOURCE
from itnet_compiler.ir.pair.split import distribute, stages
from tests.ir.pair.functions import FUNCTIONS
from tests.ir.pair.pairs import at_once, tensors, traced


def _in_stages(program, inputs):
    cut = stages(program)
    given = {}
    for side in (SHARED, QUERY, SOURCE):
        part = cut.of(side)
        made = run(part, {item.name: inputs[item.name] for item in part.inputs}, 2)
        given |= dict(zip(cut.names[side], made, strict=True))
        assert set(part.sides) <= {SHARED, side}
    (result,) = run(cut.core, given or {"": inputs["pos_q"]}, 2)
    return result.expand(inputs["pos_q"].shape[0], inputs["pos_k"].shape[1], *result.shape[2:])


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_function_stays_the_same(name):
    function, params = FUNCTIONS[name]
    found, inputs = traced(function, tensors(), params)
    expected = at_once(found.program, inputs)
    split = distribute(found.program)
    torch.testing.assert_close(at_once(split, inputs), expected)
    torch.testing.assert_close(_in_stages(split, inputs), expected)


def _pair_widths(function, params=None):
    """Widths of the arguments of linear maps that are left for each pair."""
    found, _ = traced(function, tensors(), params)
    core = stages(distribute(found.program)).core
    assert all(side == PAIR for value, side in zip(core.values, core.sides, strict=True) if value.op == "linear")
    return sorted(core.values[value.args[0]].shape[-1] for value in core.values if value.op == "linear")


def test_the_first_layer_is_query_part_plus_source_part_plus_relative_part():
    function, _ = FUNCTIONS["concatenation"]
    assert _pair_widths(function) == [2, 7]  # p − p' (two axes), and the second layer


def test_fourier_features_of_differences_stay_with_the_pair():
    assert _pair_widths(*FUNCTIONS["fourier"]) == [2, 4, 4, 5]  # Ω(p − p'), sines, cosines, the second layer


def test_differences_of_features_are_split():
    weight = torch.randn(3, 5, dtype=torch.float64)

    def function(pos_q, pos_k, feat_q, feat_k):
        return torch.tanh(weight @ (2 * feat_q[:5] - feat_k / 3) + 1)

    assert _pair_widths(function) == []


def test_differences_are_taken_before_they_are_scaled():
    """Near points far from the origin keep their digits."""

    def function(pos_q, pos_k, feat_q, feat_k):
        return torch.sin(1e3 * (pos_q - pos_k)).sum() + torch.sin(1e3 * (feat_q[:5] - feat_k))

    far = [tensor.float() * 2**-10 + 4096.0 for tensor in tensors()]
    found, inputs = traced(function, far)
    exact = at_once(found.program, {name: tensor.double() for name, tensor in inputs.items()})
    assert (at_once(distribute(found.program), inputs) - exact).abs().max() < 1e-5
