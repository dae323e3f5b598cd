"""A transform set to the kernel of a convolution, of attention, of a recurrence computes it, gradients included."""

from __future__ import annotations

import pytest
import torch
from itnet.nn import IntegralTransform
from torch import nn

import itnet


def _agree(found, expected, leaf):
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    pull = torch.linspace(-1, 1, found.numel(), dtype=found.dtype).reshape(found.shape)
    gradients = [torch.autograd.grad(y, leaf, pull, retain_graph=True)[0] for y in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("size", "dilation"), [(1, 1), (3, 1), (5, 2), (4, 2)])
def test_convolution(size, dilation, dtype):
    torch.manual_seed(0)
    conv = nn.Conv1d(6, 4, size, dilation=dilation, padding=dilation * (size - 1) // 2, dtype=dtype)
    x = torch.randn(2, 70, 6, dtype=dtype, requires_grad=True)
    _agree(IntegralTransform.from_conv(conv).to(dtype)(x), conv(x.mT).mT, x)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_attention(causal, dtype):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(16, 4, batch_first=True, dtype=dtype)
    nn.init.normal_(attention.in_proj_bias)
    x = torch.randn(2, 37, 16, dtype=dtype, requires_grad=True)
    mask = torch.ones(37, 37, dtype=torch.bool).triu(1) if causal else None
    expected, _ = attention(x, x, x, attn_mask=mask, need_weights=False)
    found = IntegralTransform.from_attention(attention, causal=causal).to(dtype)
    _agree(found(x), expected, x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_recurrence(dtype):
    torch.manual_seed(0)
    decay, gain = torch.tensor([0.9, 0.5, 1e-3, 1.0], dtype=dtype), torch.randn(4, dtype=dtype)
    x = torch.randn(2, 150, 4, dtype=dtype, requires_grad=True)
    state, states = torch.zeros(2, 4, dtype=dtype), []
    for step in x.unbind(1):
        state = decay * state + gain * step
        states.append(state)
    found = IntegralTransform.from_recurrence(decay, gain).to(dtype)
    y = found(x)
    torch.testing.assert_close(y, torch.stack(states, 1), rtol=2e-6, atol=5e-6)
    y.sum().backward()
    assert found.kernel.params.log_decay.grad.isfinite().all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(4, 4, 3),
        nn.Conv1d(4, 4, 3, padding=1, groups=2),
        nn.Conv1d(4, 4, 3, padding=1, padding_mode="circular"),
    ],
    ids=str,
)
def test_other_convolutions_are_refused(layer):
    with pytest.raises(itnet.InputError, match="length, has groups"):
        IntegralTransform.from_conv(layer)


def test_other_layers_are_refused():
    with pytest.raises(itnet.InputError, match="several sizes"):
        IntegralTransform.from_attention(nn.MultiheadAttention(8, 2, kdim=4, vdim=4))
    with pytest.raises(itnet.InputError, match="between 0 and 1"):
        IntegralTransform.from_recurrence(torch.tensor([1.5]))
