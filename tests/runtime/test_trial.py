"""The comparison with the original code: what it sees, and that it leaves no trace."""

import pytest
import torch
from torch import nn

from itnet_compiler.runtime.trial import run_trial


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.calls = nn.BatchNorm1d(3), 0

    def forward(self, x):
        self.calls += 1
        return self.norm(x)


def trial(original, graph, *args, root=None, gradients=True):
    return run_trial(root or nn.Identity(), original, graph, args, {}, gradients=gradients)


X = torch.tensor([[1.0, -2.0, 0.5]])


def test_equal_and_unequal_outputs():
    assert trial(torch.sin, torch.sin, X).error == 0
    found = trial(torch.sin, torch.cos, X)
    assert not found.equal and "another branch" in found.describe()


def test_unequal_gradients_of_equal_outputs():
    x = X.clone().requires_grad_()
    found = trial(lambda x: x * 1, lambda x: x.detach() + 0 * x, x)
    assert found.error == 0 and not found.equal and "gradients" in found.describe()
    assert not trial(lambda x: x * 1, lambda x: x.detach(), x).equal


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_gradients_that_are_not_numbers_must_agree_too(value):
    x = X.clone().requires_grad_()

    def times(factor):
        return lambda x: (x * factor).nan_to_num(0.0, 0.0, 0.0) + x.detach() * 0

    assert trial(times(value), times(value), x).equal
    infinite = lambda x: (x - x.detach()).sqrt()  # noqa: E731  slope 1/0
    assert trial(infinite, infinite, x).gradient_error == 0
    assert not trial(infinite, lambda x: (x - x.detach()) * 1, x).equal


def test_an_original_that_differs_from_itself_is_no_evidence():
    draws = iter(range(100))
    found = trial(lambda x: x + next(draws), lambda x: x + next(draws), X)
    assert found.equal and "differs from itself" in found.describe()


def test_buffers_and_attributes_count_and_are_put_back():
    model = Counts()
    x = torch.randn(4, 3)
    assert trial(model, model, x, root=model).equal
    found = trial(model, lambda x: nn.functional.batch_norm(x, None, None, training=True), x, root=model)
    assert not found.equal
    assert model.calls == 0 and int(model.norm.num_batches_tracked) == 0


def test_a_write_that_only_the_original_makes_is_named():
    model = Counts().eval()
    found = trial(model, lambda x: model.norm(x), torch.randn(4, 3), root=model)
    assert not found.equal and "calls" in found.describe()


def test_randomness_is_the_same_for_both_and_left_where_it_was():
    before = torch.get_rng_state()
    assert trial(torch.nn.functional.dropout, torch.nn.functional.dropout, torch.ones(50)).error == 0
    assert torch.equal(before, torch.get_rng_state())


def test_a_backward_that_fails_is_said():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no")

    found = trial(Broken.apply, Broken.apply, X.clone().requires_grad_())
    assert found.equal and "backward fails" in found.describe()


def test_what_magnifies_rounding_is_decided_in_float64():
    """Scores of a billion: the original is off by more than the bound, and another exact evaluation differs from it."""
    scale = nn.Linear(4, 4, bias=False)

    def original(module, x):
        return (module(x) + 1e9).softmax(-1)

    def exact(x):
        return scale(x).softmax(-1)

    def wrong(x):
        return (2 * scale(x)).softmax(-1)

    x = torch.randn(3, 4)
    code = lambda x: original(scale, x)  # noqa: E731
    assert not run_trial(scale, code, exact, (x,), {}).equal
    assert run_trial(scale, code, exact, (x,), {}, gradients=True, code=original).equal
    assert not run_trial(scale, lambda x: exact(x), wrong, (x,), {}, code=lambda module, x: module(x).softmax(-1)).equal
