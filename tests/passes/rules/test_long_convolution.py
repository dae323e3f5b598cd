"""Convolutions by Fourier transforms, and the transforms that are none."""

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.ir.fourier import Fourier
from itnet_compiler.ir.long_convolution import LongConvolution

CHANNELS = 6


class Net(nn.Module):
    """An embedding, one way to mix (B, L, C), a linear layer."""

    def __init__(self, program, dtype=torch.float32):
        super().__init__()
        self.embed, self.norm = nn.Embedding(11, CHANNELS), nn.LayerNorm(CHANNELS)
        self.out, self.program = nn.Linear(CHANNELS, CHANNELS), program
        self.taps = nn.Parameter(torch.randn(CHANNELS, 16))
        self.spectrum = nn.Parameter(torch.randn(9, CHANNELS, 2))

    def forward(self, ids):
        return self.out(self.program(self, self.norm(self.embed(ids))))


def hyena(net, x):
    """Padded to twice the length, and cut: a causal convolution."""
    u, length = x.transpose(1, 2), x.shape[1]
    k = net.taps[:, :length]
    y = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(k, n=2 * length), n=2 * length)
    return y[..., :length].transpose(1, 2)


def hyena_forward_norm(net, x):
    """As H3 and Hyena write it: the filter's transform over N, transformed back without a factor."""
    u, n = x.transpose(1, 2), 2 * x.shape[1]
    k_f = torch.fft.rfft(net.taps[:, : x.shape[1]], n=n, norm="forward")
    y = torch.fft.irfft(k_f * torch.fft.rfft(u.to(k_f.real.dtype), n=n), n=n, norm="forward")[..., : x.shape[1]]
    return y.transpose(1, 2)


def over_axis_one(net, x):
    n = 2 * x.shape[1]
    k = net.taps.T[: x.shape[1]]
    return torch.fft.irfft(torch.fft.rfft(x, n, dim=1) * torch.fft.rfft(k, n, dim=0), n, dim=1)[:, : x.shape[1]]


def global_filter(net, x):
    """GFNet's, on one axis: the learned weights are the transform."""
    y = torch.fft.rfft(x, n=16, dim=1, norm="ortho") * torch.view_as_complex(net.spectrum)
    return torch.fft.irfft(y, n=16, dim=1, norm="ortho")


def circular(net, x):
    u = x.transpose(1, 2)
    return torch.fft.irfft(torch.fft.rfft(u, n=16) * torch.fft.rfft(net.taps), n=16).transpose(1, 2)


def complex_(net, x):
    u = x.transpose(1, 2)
    return torch.fft.ifft(torch.fft.fft(u) * torch.fft.fft(net.taps)).real.transpose(1, 2)


def autocorrelation(net, x):
    """As Autoformer writes it."""
    q, k = torch.fft.rfft(x, n=16, dim=1), torch.fft.rfft(x.flip(-1), n=16, dim=1)
    return torch.fft.irfft(q * torch.conj(k), n=16, dim=1)


def two_axes(net, x):
    u = x.unflatten(1, (4, 4))
    k = net.taps.T.unflatten(0, (4, 4))
    y = torch.fft.irfft2(torch.fft.rfft2(u, dim=(1, 2)) * torch.fft.rfft2(k, dim=(0, 1)), s=(4, 4), dim=(1, 2))
    return y.flatten(1, 2)


CAUSAL = {"hyena": hyena, "hyena_forward_norm": hyena_forward_norm, "over_axis_one": over_axis_one}
SPELLINGS = CAUSAL | {
    "global_filter": global_filter,
    "circular": circular,
    "complex": complex_,
    "autocorrelation": autocorrelation,
    "two_axes": two_axes,
}


def keep_too_much(net, x):
    u, length = x.transpose(1, 2), x.shape[1]
    y = torch.fft.irfft(torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(net.taps, n=2 * length), n=2 * length)
    return y[..., 1 : length + 1].transpose(1, 2)


TRANSFORMS_ALONE = {
    "fnet": lambda net, x: torch.fft.fftn(x, dim=(1, 2)).real,
    "fnet_twice": lambda net, x: torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real,
    "low_pass": lambda net, x: torch.fft.irfft(torch.fft.rfft(x, dim=1)[:, :3], n=16, dim=1),
    "used_elsewhere": lambda net, x: global_filter(net, x) + torch.fft.rfft(x, dim=1).abs().mean(1, keepdim=True),
    "perhaps_17": lambda net, x: torch.fft.irfft(  # 17 positions have as many frequencies as 16
        torch.fft.rfft(x, dim=1) * torch.view_as_complex(net.spectrum), n=16, dim=1
    ),
    "other_length": lambda net, x: torch.fft.irfft(
        torch.fft.rfft(x, n=20, dim=1)[:, :9] * torch.view_as_complex(net.spectrum), n=16, dim=1
    ),
}


def error(value, exact):
    value, exact = value.detach().double(), exact.detach()
    return float((value - exact).norm() / exact.norm())


def nodes(unified, kind):
    return [node for node in unified.integrals.values() if isinstance(node.kernel, kind)]


def same(model, unified, ids):
    exact = model.double()(ids)
    model.float()
    assert error(unified(ids), exact) <= 2 * error(model(ids), exact) + 1e-6


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name):
    torch.manual_seed(0)
    model, ids = Net(SPELLINGS[name]).eval(), torch.randint(0, 11, (2, 16))
    unified = itnet.unify(model, ids)
    (node,) = nodes(unified, LongConvolution)
    assert node.verification.status == "verified" and node.family == "stationary"
    assert node.kernel.causal is (name in CAUSAL)
    assert unified.report().to_dict()["coverage"] == 1.0
    same(model, unified, ids)
    if name in ("hyena", "over_axis_one"):
        same(model, unified, ids[:, :7])


@pytest.mark.parametrize("name", SPELLINGS)
def test_gradients(name):
    torch.manual_seed(0)
    model, ids = Net(SPELLINGS[name]).double(), torch.randint(0, 11, (2, 16))
    unified = itnet.unify(model, ids, copy=True)
    found = []
    for network in (model, unified):
        grads = torch.autograd.grad(network(ids).square().sum(), list(network.parameters()), allow_unused=True)
        found.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    assert error(found[1], found[0]) < 1e-12


@pytest.mark.parametrize("name", [*TRANSFORMS_ALONE, "keep_too_much"])
def test_transforms_alone(name):
    torch.manual_seed(0)
    program = TRANSFORMS_ALONE.get(name, keep_too_much)
    model, ids = Net(program).eval(), torch.randint(0, 11, (2, 16))
    unified = itnet.unify(model, ids)
    assert not [node for node in nodes(unified, LongConvolution) if node.kernel.causal]
    assert nodes(unified, Fourier) or name == "keep_too_much"
    assert unified.report().to_dict()["coverage"] == 1.0
    same(model, unified, ids)


def test_a_transform_over_features_is_pointwise():
    model = Net(lambda net, x: torch.fft.fft(x, dim=-1).real).eval()
    unified = itnet.unify(model, torch.randint(0, 11, (2, 16)))
    assert not unified.integrals and unified.report().to_dict()["coverage"] == 1.0
