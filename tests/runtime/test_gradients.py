"""Gradients that are compared: as they are, or projections of them."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor, nn

from itnet_compiler.runtime.gradients import Gradients, slope_error
from itnet_compiler.runtime.trial import run_trial


class Wide(nn.Module):
    """Parameters of several rows of a projection, of none, one that is not used, and a sparse gradient."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(50, 300, sparse=True)
        self.first, self.last = nn.Linear(300, 200), nn.Linear(200, 3)
        self.unused = nn.Parameter(torch.randn(5))

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.first(self.table(ids)))
        return h, self.last(h)


IDS = torch.tensor([[1, 7, 7], [3, 0, 49]])


def _gradients(model: nn.Module, limit: int, inputs: tuple[Tensor, ...] = (IDS,)) -> list[Tensor | None]:
    found = Gradients(model, limit, sketched=True).of(list(model(*inputs)), [])
    assert found is not None
    return found


def test_projections_are_small_and_differ_as_much_as_what_is_projected():
    model, other = Wide(), Wide()
    with torch.no_grad():
        other.first.weight.mul_(1 + 1e-2 * torch.randn(other.first.weight.shape))
    whole, small = ([_gradients(one, limit) for one in (model, other)] for limit in (1 << 30, 0))
    assert max(one.numel() for one in small[0] if one is not None) < 2 * 4096
    assert [one is None for one in small[0]] == [one is None for one in whole[0]]
    dense = [[None if one is None else one.to_dense() for one in side] for side in whole]
    assert slope_error(*small) == pytest.approx(slope_error(*dense), rel=0.2) and slope_error(*small) > 1e-4
    assert slope_error(small[0], _gradients(copy.deepcopy(model), 0)) == 0


def test_no_gradient_is_left_and_none_changed():
    model = Wide()
    model.last.weight.grad = torch.ones_like(model.last.weight)
    _gradients(model, 0)
    assert model.first.weight.grad is None and bool((model.last.weight.grad == 1).all())
    assert not any(one._backward_hooks for one in model.parameters())


def test_another_backward_pass_at_the_same_time_gets_its_own_gradients():
    model, reached, go = Wide(), threading.Event(), threading.Event()

    class Waits(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            reached.set()
            assert go.wait(10)
            return grad

    expected = torch.autograd.grad(model(IDS)[0].sum(), model.first.weight)[0]
    h, y = model(IDS)
    taken = Gradients(model, 0, sketched=True)
    thread = threading.Thread(target=lambda: taken.of([Waits.apply(h), y], []))
    thread.start()
    assert reached.wait(10)
    found = torch.autograd.grad(model(IDS)[0].sum(), model.first.weight)[0]
    go.set()
    thread.join()
    torch.testing.assert_close(found, expected)


def test_a_trial_sees_one_weight_that_is_cut():
    model = nn.Sequential(nn.Linear(40, 5000), nn.Tanh(), nn.Linear(5000, 2))
    cut = lambda x: model[2](torch.tanh(nn.functional.linear(x, model[0].weight.detach(), model[0].bias)))  # noqa: E731
    x, limits = torch.randn(3, 40), "itnet_compiler.runtime.trial._GRADIENTS"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(limits, 1000)
        same = run_trial(model, model, model, (x,), {}, gradients=True, sketched=True)
        assert same.equal and same.gradient_error == 0
        assert not run_trial(model, model, cut, (x,), {}, gradients=True, sketched=True).equal
        assert "limit" in run_trial(model, model, cut, (x,), {}, gradients=True).gradient_note
