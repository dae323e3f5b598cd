"""Loops whose steps call custom autograd functions are one node each, with these functions' own backward."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import itnet


class Spike(torch.autograd.Function):
    """1 above 0, with the gradient of a steep sigmoid."""

    @staticmethod
    def forward(ctx, x: Tensor, slope: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.slope = slope
        return (x > 0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad / (1 + ctx.slope * x.abs()) ** 2, None


class Clipped(torch.autograd.Function):
    """Gradients of at most 0.01: the sum of several is not the one of the sum."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad.clamp(-0.01, 0.01)


class Halves(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[..., :2] * 1, x[..., 2:] * 2

    @staticmethod
    def backward(ctx, one: Tensor, two: Tensor) -> Tensor:
        return torch.cat([one, 3 * two], -1)


class Spiking(nn.Module):
    """Leaky integrate-and-fire: what has fired is taken off the potential."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.back = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        potential = spikes = torch.zeros_like(x[:, 0])
        fired = []
        for t in range(x.shape[1]):
            potential = 0.9 * potential + self.enter(x[:, t]) + self.back(spikes) - spikes
            spikes = Spike.apply(potential - 0.3, 5.0)
            fired.append(spikes)
        return torch.stack(fired, 1), potential


class ClippedBeforeAndInside(nn.Module):
    """What each step does to the same weight, and to its own input, is not done once for all steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.scale = nn.Parameter(torch.randn(4, 4) / 2), nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = torch.sin(h @ Clipped.apply(self.weight) + Clipped.apply(x[:, t] * self.scale))
        return h


class Exchanged(nn.Module):
    """Several results, of which each goes another way."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        h, kept = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            one, two = Halves.apply(torch.tanh(h * self.scale) + x[:, t])
            h = torch.cat([two, one], -1)
            kept.append(h)
        return torch.stack(kept, 1)


def _results(net: nn.Module, x: Tensor) -> list[Tensor]:
    given = x.clone().requires_grad_()
    out = net(given)
    leaves = list(out) if isinstance(out, tuple) else [out]
    total = sum((one * torch.linspace(-1, 1, one.numel(), dtype=one.dtype).view(one.shape)).sum() for one in leaves)
    return [*leaves, *torch.autograd.grad(total, [given, *net.parameters()])]


@pytest.mark.parametrize(
    ("kind", "lengths"),
    [
        (Spiking, (9,)),
        (ClippedBeforeAndInside, (9,)),
        pytest.param(Spiking, (9, 14), marks=pytest.mark.exhaustive),
        pytest.param(Exchanged, (9, 14), marks=pytest.mark.exhaustive),
    ],
)
def test_a_step_with_a_custom_function_is_one_node(kind, lengths):
    module = kind()
    unified = itnet.unify(module, torch.randn(3, 9, 4))
    (node,) = unified.integrals.values()
    assert (node.origin, node.verification.status) == ("loop", "verified")
    for length in lengths:
        x = torch.randn(3, length, 4)
        torch.testing.assert_close(_results(unified, x), _results(module, x), rtol=1e-4, atol=1e-5)
    assert len(lengths) == 1 or any("any length" in label for label in unified.report().to_dict()["variants"])
    torch.testing.assert_close(copy.deepcopy(unified)(x), module(x))


def _of_one_name(sign: float) -> type[torch.autograd.Function]:
    class Scaled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx, grad: Tensor) -> Tensor:
            return sign * grad

    return Scaled


PLUS, MINUS = _of_one_name(0.5), _of_one_name(-0.5)


def test_functions_of_one_name_are_not_confused():
    class Alternates(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros_like(x[:, 0])
            for t in range(x.shape[1]):
                h = torch.sin((PLUS if t < 6 else MINUS).apply(h) + x[:, t])
            return h

    class Both(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros_like(x[:, 0])
            for t in range(x.shape[1]):
                h = torch.sin(PLUS.apply(h) + MINUS.apply(x[:, t]))
            return h

    x = torch.randn(3, 12, 4)
    for module in (Alternates(), Both()):
        unified = itnet.unify(module, x)
        torch.testing.assert_close(_results(unified, x), _results(module, x))
    assert len(unified.integrals) == 1
