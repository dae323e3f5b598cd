"""Sums, means and maxima over positions; everything else along an axis is refused with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import itnet
from itnet_compiler.ir.dense import Dense
from itnet_compiler.ir.domain import Grid
from itnet_compiler.passes.rules.reduction import maximum_with_indices, reduction
from tests.passes.regions import captured, check_region, propose_one, refusals


class Model(nn.Module):
    """A function of what a layer gives."""

    def __init__(self, first: nn.Module, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.first, self.function = first, function

    def forward(self, x: Tensor) -> Any:
        return self.function(self.first(x))


def image(function: Callable[..., Any], spatial: int = 2) -> tuple[Model, Tensor]:
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[spatial - 1](3, 4, 3)
    return Model(conv, function), torch.randn(2, 3, *(7, 9, 6)[:spatial])


def tokens(function: Callable[..., Any]) -> tuple[Model, Tensor]:
    return Model(nn.Linear(6, 4), function), torch.randn(2, 5, 6)


@pytest.mark.parametrize(
    ("given", "kernel", "origin"),
    [
        (image(lambda y: y.mean((2, 3))), Dense("uniform", axes=(2, 3), mean=True), "mean"),
        (
            image(lambda y: y.mean((-2, -1), keepdim=True)),
            Dense("uniform", axes=(-2, -1), keepdim=True, mean=True),
            "mean",
        ),
        (image(lambda y: y.sum(-1), 1), Dense("uniform", axes=(-1,)), "sum"),
        (image(lambda y: y.amax((2, 4)), 3), Dense("uniform", axes=(2, 4), maximum=True), "amax"),
        (image(lambda y: y.permute(0, 2, 3, 1).relu().mean([1, 2])), Dense("uniform", axes=(1, 2), mean=True), "mean"),
        (image(lambda y: y.flatten(2).mean(-1)), Dense("uniform", axes=(-1,), mean=True), "mean"),
        (tokens(lambda y: y.mean(1)), Dense("uniform", axes=(1,), mean=True), "mean"),
        (tokens(lambda y: (y * torch.ones(5, 1)).sum(1) / 5), Dense("uniform", axes=(1,)), "sum"),
        (tokens(lambda y: y.view(y.shape[0], -1, 2, 2).mean(1)), Dense("uniform", axes=(1,), mean=True), "mean"),
        (tokens(lambda y: F.normalize(y.mean(1), dim=-1)), Dense("uniform", axes=(1,), mean=True), "mean"),
        (tokens(lambda y: y.square().mean(1).sqrt()), Dense("uniform", axes=(1,), mean=True), "mean"),
        (tokens(lambda y: y * y.mean(1, keepdim=True)), Dense("uniform", axes=(1,), keepdim=True, mean=True), "mean"),
    ],
    ids=lambda value: value.describe() if isinstance(value, Dense) else str(value) if isinstance(value, str) else "",
)
def test_positions(given: tuple[Model, Tensor], kernel: Dense, origin: str) -> None:
    model, x = given
    graph = captured(model, x)
    proposal = propose_one(graph, reduction)
    assert (proposal.spec.kernel, proposal.spec.domain) == (kernel, Grid(len(kernel.axes)))
    assert proposal.spec.origin == origin
    check_region(graph, proposal, x)


def test_all_axes_of_a_tensor_without_batch():
    class Line(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.avg_pool1d(x, 2).select(0, 0).mean()

    x = torch.randn(3, 8)
    graph = captured(Line(), x)
    proposal = propose_one(graph, reduction)
    assert proposal.spec.kernel == Dense("uniform", axes=(0,), mean=True)
    check_region(graph, proposal, x)


STATISTIC = "a statistic of a normalisation, not a pooling of positions"


def _softmax(y: Tensor) -> Tensor:
    e = (y - y.amax(1, keepdim=True)).exp()
    return e / e.sum(1, keepdim=True)


def _instance_norm(y: Tensor) -> Tensor:
    y = y - y.mean(1, keepdim=True)
    return y * (y.square().mean(1, keepdim=True) + 1e-5).rsqrt()


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (image(lambda y: y.mean(1)), "axis 1 is not proven to be a position axis, it is feature"),
        (image(lambda y: y.sum((0, 2, 3))), "axis 0 is not proven to be a position axis, it is batch"),
        (image(lambda y: y.mean()), "axis 0 is not proven to be a position axis, it is batch"),
        (image(lambda y: y.flatten(1).mean(1)), "axis 1 is not proven to be a position axis, it is feature"),
        (tokens(lambda y: y.flatten(0, 1).amax(0)), "axis 0 is not proven to be a position axis, it is batch"),
        (tokens(lambda y: torch.stack([y, y]).sum(0)), "axis 0 is not proven to be a position axis, it is unknown"),
        (tokens(lambda y: y.mean(-1)), "axis -1 is not proven to be a position axis, it is feature"),
        (tokens(lambda y: y.sum(1, dtype=torch.float64)), "the result has another dtype"),
        (tokens(lambda y: (y > 0).sum(1)), "the result has another dtype"),
        (tokens(_instance_norm), STATISTIC),
        (tokens(_softmax), STATISTIC),
        (
            tokens(lambda y: y - y.float().mean(1, keepdim=True)),
            STATISTIC,
        ),
    ],
)
def test_near_misses(given: tuple[Model, Tensor], reason: str) -> None:
    reasons = refusals(captured(*given), reduction)
    assert reasons
    assert set(reasons) == {reason}


@pytest.mark.parametrize(
    ("given", "axis", "keepdim"),
    [
        (tokens(lambda y: y.relu().max(1)[0]), 1, False),
        (tokens(lambda y: y.max(dim=1, keepdim=True)), 1, True),
        (image(lambda y: y.flatten(2).max(-1).values), -1, False),
        (tokens(lambda y: y.view(y.shape[0], -1, 5, 4).max(dim=2)[0].relu()), 2, False),
    ],
)
def test_maximum_with_indices(given: tuple[Model, Tensor], axis: int, keepdim: bool) -> None:
    model, x = given
    graph = captured(model, x)
    proposal = propose_one(graph, maximum_with_indices)
    places = {"maximum": True, "returns_indices": True, "keepdim": keepdim}
    assert proposal.spec.kernel == Dense("uniform", axes=(axis,), **places)
    check_region(graph, proposal, x)


class Tied(nn.Module):
    """Rectified features: many positions hold the same maximum, 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return (y.clamp(max=0.0) * 0.0 + y.detach().round() * 0.0 + y - y.detach()).max(1)[0] * torch.arange(1.0, 5.0)


def test_of_equal_positions_one_gets_the_gradient() -> None:
    """``amax`` would share the gradient that ``max`` gives to one of them."""
    model, x = Tied(), torch.randn(2, 5, 6)
    unified = itnet.unify(model, x)
    assert [node.origin for node in unified.integrals.values()] == ["max"]
    slopes = [torch.autograd.grad(network(x).sum(), list(model.parameters())) for network in (model, unified)]
    shared = torch.autograd.grad((model.first(x).mean(1) * torch.arange(1.0, 5.0)).sum(), list(model.parameters()))
    assert all(torch.equal(one, two) for one, two in zip(*slopes, strict=True))
    assert not torch.allclose(slopes[0][0], shared[0])


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (tokens(lambda y: y.max(2)[0]), "axis 2 is not proven to be a position axis, it is feature"),
        (tokens(lambda y: y - y.max(1, keepdim=True)[0]), STATISTIC),
        (tokens(lambda y: (y - y.max(1, keepdim=True)[0].detach()).exp()), STATISTIC),
        (tokens(lambda y: y.max(0)[0]), "axis 0 is not proven to be a position axis, it is batch"),
    ],
)
def test_near_misses_of_a_maximum_with_indices(given: tuple[Model, Tensor], reason: str) -> None:
    assert refusals(captured(*given), maximum_with_indices) == [reason]
