"""RWKV's loop, in a module named as those of transformers are, is one node of any length."""

import sys
import types

import pytest
import torch
from torch import nn

import itnet

PLACE = "transformers.models.rwkv_of_this_test"


def _loop(change=0.0):
    """The average as somebody may have written it; with ``change`` it is another."""

    def rwkv_linear_attention_cpu(time_decay, time_first, key, value, state=None, return_state=False):
        if state is None:
            rows = torch.zeros_like(key[:, 0], dtype=torch.float32)
            n, d, m = rows, rows, rows - 1e38
        else:
            n, d, m = state
        w, outputs = -torch.exp(time_decay), []
        for t in range(key.shape[1]):
            k, v = key[:, t].float(), value[:, t]
            top = torch.maximum(m, k + time_first)
            past, now = torch.exp(m - top), torch.exp(k + time_first - top) + change
            outputs.append((past * n + now * v) / (past * d + now))
            top = torch.maximum(m + w, k)
            past, now = torch.exp(m + w - top), torch.exp(k - top)
            n, d, m = past * n + now * v, past * d + now, top
        return torch.stack(outputs, 1), [n, d, m] if return_state or state is not None else None

    return rwkv_linear_attention_cpu


class Mixes(nn.Module):
    def __init__(self, returns=False):
        super().__init__()
        torch.manual_seed(0)
        self.decay, self.bonus = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))
        self.key, self.value, self.returns = nn.Linear(6, 6), nn.Linear(6, 6), returns

    def forward(self, x, state=None):
        run = sys.modules[PLACE].rwkv_linear_attention_cpu
        y, state = run(self.decay, self.bonus, self.key(x), self.value(x), state, self.returns)
        return (y, *state) if state is not None else y


@pytest.fixture
def place(monkeypatch):
    module = types.ModuleType(PLACE)
    module.rwkv_linear_attention_cpu = _loop()
    monkeypatch.setitem(sys.modules, PLACE, module)
    return module


def _results(net, *inputs):
    net.zero_grad()
    out = net(*inputs)
    leaves = out if isinstance(out, tuple) else (out,)
    sum((leaf * torch.linspace(-1, 1, leaf.numel()).view(leaf.shape)).sum() for leaf in leaves).backward()
    return [*leaves, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("states", ["none", "returned", "given"])
def test_the_loop_is_one_node_of_any_length(place, states):
    model, x = Mixes(states == "returned"), torch.randn(2, 9, 6)
    state = [[torch.randn(2, 6), torch.rand(2, 6), torch.randn(2, 6)]] if states == "given" else []
    unified = itnet.unify(model, (x, *state), copy=True)
    (node,) = unified.integrals.values()
    assert (node.origin, node.family, node.verification.status) == ("weighted average", "semiseparable", "verified")
    for steps in (9, 2, 40):
        x = torch.randn(2, steps, 6)
        torch.testing.assert_close(_results(unified, x, *state), _results(model, x, *state), rtol=1e-4, atol=1e-5)


def test_another_average_of_that_name_is_left_alone(place):
    place.rwkv_linear_attention_cpu = _loop(0.1)
    model, x = Mixes(), torch.randn(2, 9, 6)
    unified = itnet.unify(model, x, copy=True)
    assert not unified.integrals and "differs from the region" in str(unified.report())
    torch.testing.assert_close(_results(unified, x), _results(model, x))
