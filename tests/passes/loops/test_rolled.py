"""What a step does that changes nothing is no part of it; what names a device is."""

import pytest
import torch
from torch import Tensor, nn

import itnet


class Converts(nn.Module):
    """An average that is brought to the dtype and device that it has, and kept as the module's state."""

    def __init__(self):
        super().__init__()
        self.decay, self.state = nn.Parameter(torch.full((6,), 0.9)), None

    def forward(self, x):
        h, outputs = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = self.decay * h.to(self.decay.device) + x[:, t].type(torch.float32)
            outputs[:, t] = h.to(x.dtype)
        self.state = h
        return outputs


class Copies(nn.Module):
    def forward(self, x):
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = torch.tanh(h.to("cpu", copy=True) * 0.5 + x[:, t])
        return h


def test_conversions_that_change_nothing_leave_a_linear_recurrence():
    model, x = Converts(), torch.randn(2, 8, 6)
    unified = itnet.unify(model, x, copy=True)
    (node,) = unified.integrals.values()
    assert node.family == "semiseparable"
    for steps in (8, 8, 11):
        x = torch.randn(2, steps, 6)
        for net in (model, unified):
            net.zero_grad()
            net(x).square().sum().backward()
        torch.testing.assert_close(unified(x), model(x))
        torch.testing.assert_close(unified.state, model.state)
        torch.testing.assert_close(unified.decay.grad, model.decay.grad)


def test_the_work_of_a_step_that_names_a_device_is_counted():
    unified = itnet.unify(Copies(), torch.randn(2, 20, 6))
    (node,) = unified.integrals.values()
    assert node.family == "gated" and "total integrals" in str(unified.report())


class Ends(nn.Module):
    """Returns all states, one of them and the last."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, states = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
            states.append(h)
        return torch.stack(states, 1), states[-2], h


def test_a_state_lies_apart_from_all_of_them() -> None:
    unified = itnet.unify(Ends(), X := torch.randn(3, 9, 4))
    assert len(unified.integrals) == 1
    states, one, last = unified(X)
    assert [value.stride() for value in (states, one, last)] == [value.stride() for value in Ends()(X)]
    before = states.clone()
    one.zero_()
    last.zero_()
    assert torch.equal(states, before)


class Weighed(nn.Module):
    """A factor that may be one number a step."""

    def forward(self, x: Tensor, g: Tensor) -> Tensor:
        h, states = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.tanh(x[:, t] + h * g[:, t])
            states.append(h)
        return torch.stack(states, 1)


@pytest.mark.parametrize(("first", "then"), [(1, 6), (6, 1)])
def test_an_axis_that_is_stretched_or_not_is_no_length(first: int, then: int) -> None:
    x, model = torch.randn(3, 9, 6), Weighed()
    unified = itnet.unify(model, (x, torch.randn(3, 9, first)))
    torch.testing.assert_close(unified(x, g := torch.randn(3, 9, then)), model(x, g))
