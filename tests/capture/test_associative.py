"""What of ``associative_scan`` is recorded as one node, and what is traced as a tree."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._higher_order_ops.associative_scan import wrap_combine_fn_flat
from torch.utils import _pytree as tree

from itnet_compiler.capture.associative import _traced
from itnet_compiler.passes.associative import AssociativeScan

Pair = tuple[Tensor, Tensor]
WEIGHT = torch.rand(3)


def affine(left: Pair, right: Pair) -> Pair:
    return left[0] * right[0], right[0] * left[1] + right[1]


def largest(left: Pair, right: Pair) -> Pair:
    return torch.maximum(left[0], right[0]), torch.where(right[1] > left[1], right[1], left[1])


def of_one_size(left: Pair, right: Pair) -> Pair:
    return left[0] * right[0], (left[1].expand(4, 3) + right[1])[0]


def detached(left: Pair, right: Pair) -> Pair:
    return left[0] * right[0], right[0].detach() * left[1] + right[1]


def without_gradients(left: Pair, right: Pair) -> Pair:
    with torch.no_grad():
        product = left[0] * right[0]
    return product, left[1] + right[1]


def with_a_tensor_from_outside(left: Pair, right: Pair) -> Pair:
    return left[0] * right[0], WEIGHT.sum() * left[1] + right[1]


def drawn(left: Pair, right: Pair) -> Pair:
    return left[0] * right[0], left[1] + torch.rand_like(right[1])


def wider(left: Pair, right: Pair) -> Pair:
    return left[0] * right[0], (left[1] + right[1]).double()


def _flat(combine: Callable[[Pair, Pair], Pair]) -> Callable[..., Any]:
    """As ``associative_scan`` hands it on."""
    return functools.partial(
        wrap_combine_fn_flat,
        combine_fn=torch.vmap(combine, in_dims=((0, 0), (0, 0)), out_dims=0, randomness="different"),
        spec=tree.tree_structure((0, 0)),
        num_leaves=2,
    )


@pytest.mark.parametrize("combine", [affine, largest])
@pytest.mark.parametrize("time", [1, 2, 7, 64])
def test_a_combination_is_recorded_as_a_program(combine, time):
    leaves = [torch.randn(time, 2, 3), torch.randn(time, 2, 3)]
    found = _traced(_flat(combine), leaves)
    assert found is not None and hash(found) == hash(_traced(_flat(combine), [torch.rand(5, 7)] * 2))
    expected = [leaves]
    for t in range(1, time):
        pair = combine(tuple(one[t - 1] for one in expected[-1]), tuple(one[t] for one in leaves))
        expected.append(
            [one.index_copy(0, torch.tensor([t]), new[None]) for one, new in zip(expected[-1], pair, strict=True)]
        )
    torch.testing.assert_close(AssociativeScan(found)(leaves), expected[-1])


@pytest.mark.parametrize(
    "combine", [of_one_size, detached, without_gradients, with_a_tensor_from_outside, drawn, wider]
)
def test_a_combination_that_is_more_is_not_recorded(combine):
    assert _traced(_flat(combine), [torch.randn(5, 3), torch.randn(5, 3)]) is None


def test_counts_are_not_recorded():
    assert _traced(_flat(affine), [torch.ones(5, 3, dtype=torch.long)] * 2) is None
