"""Pair functions in plain torch become programs that compute the same for every pair."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from itnet_compiler.errors import KernelError
from itnet_compiler.ir.pair.program import Program
from itnet_compiler.ir.pair.trace import trace
from tests.ir.pair import functions
from tests.ir.pair.functions import FUNCTIONS
from tests.ir.pair.pairs import SHAPES, at_once, in_a_loop, tensors, traced


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_pairs_at_once_are_each_pair_by_itself(name):
    function, params = FUNCTIONS[name]
    given = tensors()
    found, inputs = traced(function, given, params)
    keywords = {} if params is None else {"params": params}
    torch.testing.assert_close(at_once(found.program, inputs), in_a_loop(function, given, **keywords))
    assert Program.parse(str(found.program)) == found.program


def test_captured_tensors_are_the_very_objects():
    found = trace(functions.concatenation, SHAPES, None)
    assert {id(tensor) for tensor in found.captured} == {
        id(tensor) for layer in (functions.FIRST, functions.SECOND) for tensor in layer.parameters()
    }


def test_a_tensor_captured_twice_is_one_input():
    weight = nn.Parameter(torch.randn(3, 6))

    def twice(pos_q, pos_k, feat_q, feat_k):
        return torch.tanh(weight @ feat_q) + (weight * 2) @ feat_q

    assert len(trace(twice, SHAPES, None).captured) == 1


def _decides(pos_q, pos_k, feat_q, feat_k):
    if pos_q[0] > pos_k[0]:
        return feat_q
    return feat_q * 2


def _sorts(pos_q, pos_k, feat_q, feat_k):
    return torch.sort(feat_q).values


def _draws(pos_q, pos_k, feat_q, feat_k):
    return feat_q + torch.randn(6)


def _drops(pos_q, pos_k, feat_q, feat_k):
    return nn.functional.dropout(feat_q, 0.5)


def _does_not_fit(pos_q, pos_k, feat_q, feat_k):
    return feat_q + feat_k


def _is_a_matrix(pos_q, pos_k, feat_q, feat_k):
    return feat_q.view(2, 3) + 1


def _is_no_tensor(pos_q, pos_k, feat_q, feat_k):
    return [feat_q]


def _asks_for_a_number(pos_q, pos_k, feat_q, feat_k):
    return feat_q * feat_k[0].item()


COUNT = torch.zeros(6)


def _counts_calls(pos_q, pos_k, feat_q, feat_k):
    COUNT.add_(1.0)
    return feat_q * COUNT


def _adds_in_place(pos_q, pos_k, feat_q, feat_k):
    feat_q += 1
    return feat_q


def _fills(pos_q, pos_k, feat_q, feat_k):
    found = torch.zeros(6)
    found[0] = feat_q[0]
    return found


def _writes_out(pos_q, pos_k, feat_q, feat_k):
    return torch.mul(feat_q, 2.0, out=COUNT)


@pytest.mark.parametrize(
    ("function", "reason", "offset"),
    [
        (_decides, "torch.where", 1),
        (_sorts, "aten.sort.default is no operator", 1),
        (_draws, "draw random numbers outside", 1),
        (_drops, "draw random numbers outside", 1),
        (_does_not_fit, "does not run on one pair", 1),
        (_is_a_matrix, "one number a head", 1),
        (_is_no_tensor, "returns list, not a tensor", 0),
        (_asks_for_a_number, "torch.where", 1),
        (_counts_calls, "writes into a tensor (add_)", 1),
        (_adds_in_place, "writes into a tensor", 1),
        (_fills, "torch.stack or torch.cat", 2),
        (_writes_out, "writes into a tensor (mul)", 1),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_it_cannot_do_is_said_with_line_and_remedy(function, reason, offset):
    with pytest.raises(KernelError) as error:
        trace(function, SHAPES, None)
    assert reason in str(error.value)
    assert not COUNT.any(), "what belongs to the user is as it was"
    assert error.value.source_line == f"test_trace.py:{function.__code__.co_firstlineno + offset}"


def test_a_number_where_an_operator_takes_a_tensor_is_that_number():
    """vmap writes numbers so; 2 is not the value number 2."""

    def doubled(pos_q, pos_k, feat_q, feat_k):
        return torch.vmap(lambda x: x * 2)(feat_q)

    given = tensors()
    found, inputs = traced(doubled, given)
    torch.testing.assert_close(at_once(found.program, inputs), in_a_loop(doubled, given))


def test_parameters_are_tensors():
    with pytest.raises(KernelError, match="no tensor"):
        trace(lambda p, q, u, v, *, params: u * params["scale"], SHAPES, {"scale": 2.0})
