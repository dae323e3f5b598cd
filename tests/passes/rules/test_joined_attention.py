"""One softmax over several sets of sources, cut into parts: found as it is written, look-alikes left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import itnet
from itnet_compiler.ir.joined_attention import JoinedAttention
from itnet_compiler.unified import program_of

HEADS, WIDTH, BLOCK = 2, 4, 3


class Blocks(nn.Module):
    """Blocks of a sequence that attend to themselves and to global tokens; ``function`` is how it is written."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.own, self.shared = nn.Linear(8, 24), nn.Linear(8, 24)

    def forward(self, x: Tensor, tokens: Tensor) -> Any:
        q, k, v = self.own(x).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        _, k2, v2 = self.shared(tokens).unflatten(-1, (3, HEADS, WIDTH)).permute(2, 0, 3, 1, 4)
        q, k, v = (t.unflatten(2, (-1, BLOCK)) for t in (q, k, v))
        return self.function(q, k, v, k2, v2)


def _scores(q: Tensor, k: Tensor, k2: Tensor) -> tuple[Tensor, Tensor]:
    return torch.einsum("bhlqd,bhgd->bhlqg", q, k2), q @ k.transpose(-1, -2)


def pegasus_x(q, k, v, k2, v2):
    weights = torch.cat(_scores(q, k, k2), -1).softmax(-1)
    weights = nn.functional.dropout(weights, 0.1, training=False)
    count = k2.shape[2]
    there, here = weights[:, :, :, :, :count], weights[:, :, :, :, count:]
    return torch.einsum("bhlqg,bhgd->bhlqd", there, v2) + torch.einsum("bhlqk,bhlkd->bhlqd", here, v)


def big_bird(q, k, v, k2, v2):
    """The window comes between two global blocks, and sums are made in place."""
    there, here = _scores(q, k, k2)
    there, here = there * 0.5, here * 0.5
    there += there.detach().sign()
    first = torch.einsum("bhlqd,bhkd->bhlqk", q, k[:, :, 0])
    weights = torch.cat([first, here, there], -1).softmax(-1)
    block = k.shape[3]
    y = weights[..., block : 2 * block] @ v
    y += torch.einsum("bhlqk,bhkd->bhlqd", weights[..., 2 * block :], v2)
    y += torch.einsum("bhlqk,bhkd->bhlqd", weights[..., :block], v[:, :, 0])
    return y, weights


def counted_from_the_end(q, k, v, k2, v2):
    weights = torch.cat(_scores(q, k, k2), -1).softmax(dim=-1)
    block = k.shape[3]
    return weights[..., -block:] @ v + weights[..., :-block] @ v2.unsqueeze(2)


def split(q, k, v, k2, v2):
    scores = torch.cat(_scores(q, k, k2)[::-1], -1) * 0.5
    here, there = scores.softmax(-1).split([k.shape[3], k2.shape[2]], -1)
    return (there @ v2[:, :, None] + here @ v).permute(0, 2, 3, 1, 4).flatten(3)


def keys_first(q, k, v, k2, v2):
    there, here = _scores(q, k, k2)
    weights = torch.cat([here.transpose(3, 4), there.transpose(3, 4)], 3).softmax(3)
    y = v.transpose(-1, -2) @ weights.narrow(3, 0, k.shape[3])
    return y + torch.einsum("bhgd,bhlgq->bhldq", v2, weights[:, :, :, k.shape[3] :])


def single_precision(q, k, v, k2, v2):
    weights = torch.cat(_scores(q, k, k2), -1).softmax(-1, dtype=torch.float32).to(v.dtype)
    count = k2.shape[2]
    return weights[..., :count] @ v2[:, :, None] + weights[..., count:] @ v


FOUND = [pegasus_x]
ALSO = [split, big_bird, counted_from_the_end, keys_first, single_precision]


def overlapping(q, k, v, k2, v2):
    weights = torch.cat(_scores(q, k, k2), -1).softmax(-1)
    return weights[..., :BLOCK] @ v + weights[..., -BLOCK:] @ v


def one_left_out(q, k, v, k2, v2):
    weights = torch.cat(_scores(q, k, k2), -1).softmax(-1)
    count = k2.shape[2]
    return weights[..., 1:count] @ v2[:, :, None, 1:] + weights[..., count:] @ v


def of_two_softmaxes(q, k, v, k2, v2):
    there, here = (scores.softmax(-1) for scores in _scores(q, k, k2))
    return there[..., :-1] @ v2[:, :, None, :-1] + here[..., 1:] @ v[..., 1:, :]


def doubled(q, k, v, k2, v2):
    weights = torch.cat(_scores(q, k, k2), -1).softmax(-1)
    count = k2.shape[2]
    return torch.add(weights[..., :count] @ v2[:, :, None], weights[..., count:] @ v, alpha=2)


def normalised_over_queries(q, k, v, k2, v2):
    weights = torch.cat(_scores(q, k, k2), -1).softmax(-2)
    count = k2.shape[2]
    return weights[..., :count] @ v2[:, :, None] + weights[..., count:] @ v


def with_another_term(q, k, v, k2, v2):
    weights = torch.cat(_scores(q, k, k2), -1).softmax(-1)
    count = k2.shape[2]
    return q + weights[..., :count] @ v2[:, :, None] + weights[..., count:] @ v


def cut_along_queries(q, k, v, k2, v2):
    weights = (q @ k.mT).softmax(-1)
    return weights[..., :1, :] @ v + weights[..., 1:2, :] @ v


def changed_after_the_softmax(q, k, v, k2, v2):
    weights = torch.cat(_scores(q, k, k2), -1).softmax(-1) * 2.0
    count = k2.shape[2]
    return weights[..., :count] @ v2[:, :, None] + weights[..., count:] @ v


def part_used_elsewhere(q, k, v, k2, v2):
    weights = torch.cat(_scores(q, k, k2), -1).softmax(-1)
    here = weights[..., k2.shape[2] :]
    return weights[..., : k2.shape[2]] @ v2[:, :, None] + here @ v, here.sum()


MISSED = {
    overlapping: "not proven to be all",
    one_left_out: "not proven to be all",
    of_two_softmaxes: "different weights",
    doubled: "something else is added",
    normalised_over_queries: "does not run over the axis that is cut",
    with_another_term: "something else is added than products",
    cut_along_queries: "another axis than is summed",
    changed_after_the_softmax: "not a softmax",
    part_used_elsewhere: "used elsewhere",
}


def _inputs(batch: int = 2, blocks: int = 4, tokens: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return tuple(torch.randn(batch, count, 8, generator=generator) for count in (blocks * BLOCK, tokens))


def _joined(unified: Any) -> list[Any]:
    return [node for node in unified.integrals.values() if isinstance(node.kernel, JoinedAttention)]


def _said(unified: Any) -> list[Any]:
    """What the rule said."""
    return [entry for entry in program_of(unified).journal.entries if entry.rule == "joined_attention"]


def _leaves(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def _close(unified: nn.Module, model: nn.Module, given: tuple[Tensor, ...]) -> None:
    results = []
    for network in (unified, model):
        found = _leaves(network(*given))
        slopes = torch.autograd.grad(
            sum(one.square().sum() for one in found),
            list(model.parameters()),
            allow_unused=True,
            materialize_grads=True,
        )
        results.append([*found, *slopes])
    for mine, right in zip(*results, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("function", [*FOUND, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ALSO)])
def test_found_as_it_is_written(function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model = Blocks(function)
    unified = itnet.unify(model, _inputs())
    (node,) = _joined(unified)
    assert node.verification.status == "verified"
    assert unified.report().to_dict()["coverage"] == 1.0, "products of scores belong to the kernel"
    for sizes in ((2, 4, 5), (3, 7, 3)):
        _close(unified, model, _inputs(*sizes))
    copied = copy.deepcopy(unified)
    assert all(
        torch.equal(*pair) for pair in zip(*map(_leaves, (copied(*_inputs()), unified(*_inputs()))), strict=True)
    )


QUICK = (overlapping, with_another_term)


@pytest.mark.parametrize(
    "function", [one if one in QUICK else pytest.param(one, marks=pytest.mark.exhaustive) for one in MISSED]
)
def test_near_misses_compute_what_they_did(function: Callable[..., Any]) -> None:
    torch.manual_seed(0)
    model, given = Blocks(function), _inputs(tokens=7)
    unified = itnet.unify(model, given)
    assert not _joined(unified)
    assert MISSED[function] in str([e.reason for e in _said(unified)])
    _close(unified, model, given)


def test_softmax_over_branches_is_none():
    """Two groups of branches, each with a matrix for each of its branches: no positions."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.gates = nn.LayerNorm(8), nn.Parameter(torch.randn(8))
            self.first, self.second = (nn.Parameter(torch.randn(4, 6)) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            weights = (self.norm(x) * self.gates).sin().softmax(-1)
            return weights[..., :4] @ self.first + weights[..., 4:] @ self.second

    model, x = Branches(), torch.randn(2, 5, 8)
    unified = itnet.unify(model, x)
    assert not unified.integrals
    assert "nor is their axis proven to hold positions" in str(_said(unified))
    torch.testing.assert_close(unified(x), model(x))


def test_dropout_draws_once_for_all_sets():
    def dropped(q, k, v, k2, v2):
        weights = nn.functional.dropout(torch.cat(_scores(q, k, k2), -1).softmax(-1), 0.4)
        return weights[..., : k2.shape[2]] @ v2[:, :, None] + weights[..., k2.shape[2] :] @ v

    model = Blocks(dropped).train()
    unified = itnet.unify(model, _inputs())
    assert [node.kernel.dropout for node in _joined(unified)] == [0.4]
    results = []
    for network in (model, unified):
        torch.manual_seed(1)
        results.append(network(*_inputs()))
    torch.testing.assert_close(*results)
