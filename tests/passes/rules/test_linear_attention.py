"""Attention without a softmax is found in either order of its products, and what only looks like it is left alone."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import itnet
from itnet_compiler.ir.separable import Separable

HEADS, SIZE = 2, 4


class Net(nn.Module):
    """A patch embedding, queries, keys and values (B, H, N, D) of 16 tokens, one program, a projection."""

    def __init__(self, program):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, HEADS * SIZE, 4, 4), nn.LayerNorm(HEADS * SIZE)
        self.qkv, self.out = nn.Linear(HEADS * SIZE, 3 * HEADS * SIZE), nn.Linear(HEADS * SIZE, HEADS * SIZE)
        self.latents = nn.Parameter(torch.randn(HEADS, 3, SIZE))
        self.decay = nn.Parameter(torch.rand(HEADS, 16, 16))
        self.program = program

    def forward(self, x):
        x = self.norm(self.stem(x).flatten(2).transpose(1, 2))
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, SIZE)).permute(2, 0, 3, 1, 4)
        return self.out(self.program(self, q, k, v).transpose(1, 2).flatten(2))


def phi(x):
    return F.elu(x) + 1


def causal_mask(x):
    return torch.ones(x.shape[-2], x.shape[-2], device=x.device).tril()


def katharopoulos(net, q, k, v):
    """As fast-transformers writes it: (N, L, H, D), three factors in one einsum."""
    q, k, v = (x.transpose(1, 2) for x in (phi(q), phi(k), v))
    kv = torch.einsum("nshd,nshm->nhmd", k, v)
    z = 1 / (torch.einsum("nlhd,nhd->nlh", q, k.sum(dim=1)) + 1e-6)
    return torch.einsum("nlhd,nhmd,nlh->nlhm", q, kv, z).transpose(1, 2)


def normalised(net, q, k, v):
    q, k = phi(q), phi(k)
    return (q @ (k.mT @ v)) / (q @ k.sum(-2).unsqueeze(-1) + 1e-6)


def normalised_clamped(net, q, k, v):
    q, k = phi(q), phi(k)
    total = (q * k.sum(-2, keepdim=True)).sum(-1, keepdim=True)
    return (q @ (k.mT @ v)) / total.clamp(min=1e-3)


def normalised_by_reciprocal(net, q, k, v):
    q, k = phi(q), phi(k)
    z = 1.0 / (q @ k.sum(-2, keepdim=True).mT + 1e-6)
    return torch.matmul(q, k.transpose(-1, -2) @ v) * z


def with_ones(net, q, k, v):
    """As EfficientViT (MIT) writes it: the sum of the weights is one more value."""
    y = F.relu(q) @ (F.relu(k).mT @ F.pad(v, (0, 1), value=1.0))
    return y[..., :-1] / (y[..., -1:] + 1e-5)


def causal_cumsum(net, q, k, v):
    kv = torch.einsum("bhnd,bhnm->bhndm", k, v).cumsum(dim=2)
    return torch.einsum("bhnd,bhndm->bhnm", q, kv)


def causal_normalised(net, q, k, v):
    q, k = phi(q), phi(k)
    kv = (k.unsqueeze(-1) * v.unsqueeze(-2)).cumsum(2)
    z = (q * k.cumsum(2)).sum(-1, keepdim=True) + 1e-6
    return torch.einsum("bhnd,bhndm->bhnm", q, kv) / z


SPELLINGS = {
    "linear": lambda net, q, k, v: q @ (k.mT @ v),
    "scaled": lambda net, q, k, v: (q * 0.5) @ ((k.transpose(-2, -1) / 4) @ v),
    "einsum": lambda net, q, k, v: torch.einsum("bhnd,bhde->bhne", q, torch.einsum("bhmd,bhme->bhde", k, v)),
    "features_first": lambda net, q, k, v: ((v.mT @ k) @ q.mT).mT,
    "quadratic": lambda net, q, k, v: (q @ k.mT) @ v,
    "quadratic_scaled": lambda net, q, k, v: (q @ k.mT * 0.25) @ v,
    "causal_by_tril": lambda net, q, k, v: (q @ k.mT).tril() @ v,
    "causal_by_mask": lambda net, q, k, v: (q @ k.mT * causal_mask(q)) @ v,
    "causal_by_fill": lambda net, q, k, v: (q @ k.mT).masked_fill(causal_mask(q) == 0, 0) @ v,
    "causal_by_where": lambda net, q, k, v: torch.where(causal_mask(q) > 0, q @ k.mT, 0.0) @ v,
    "retention": lambda net, q, k, v: (q @ k.mT * net.decay) @ v,
    "learned_queries": lambda net, q, k, v: (net.latents @ (k.mT @ v)).repeat(1, 1, 6, 1)[:, :, :16],
    "averaged": lambda net, q, k, v: q @ (k.mT @ v / 16),
    "galerkin": lambda net, q, k, v: q @ (k.mT @ v / k.shape[-2]),
    "galerkin_quadratic": lambda net, q, k, v: ((q @ k.mT) / v.size(2)) @ v,
    "viewed": lambda net, q, k, v: torch.einsum("bhdn,bhde->bhne", q.mT, k.mT @ v).view(q.shape),
    "efficient": lambda net, q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v),
    "katharopoulos": katharopoulos,
    "normalised": normalised,
    "normalised_clamped": normalised_clamped,
    "normalised_by_reciprocal": normalised_by_reciprocal,
    "with_ones": with_ones,
    "causal_cumsum": causal_cumsum,
    "causal_normalised": causal_normalised,
    "pooled": lambda net, q, k, v: v + (phi(k).mT @ v).mean(-2, keepdim=True),
}
NORMALISED = {name for name in SPELLINGS if "normalised" in name or name == "katharopoulos"}
CAUSAL = {name for name in SPELLINGS if name.startswith("causal")}

NEAR_MISSES = {
    "softmax": lambda net, q, k, v: (q @ k.mT).softmax(-1) @ v,
    "sigmoid": lambda net, q, k, v: (q @ k.mT).sigmoid() @ v,
    "squared": lambda net, q, k, v: (q @ k.mT).relu().square() @ v,
    "future": lambda net, q, k, v: (q @ k.mT).triu() @ v,
    "shifted": lambda net, q, k, v: (q @ k.mT).tril(1) @ v,
    "averaged_over_samples": lambda net, q, k, v: q @ (k.mT @ v / k.shape[0]),
    "biased": lambda net, q, k, v: (q @ k.mT + 1.0) @ v,
    "softmaxed_features": lambda net, q, k, v: q @ (k.softmax(-1).mT @ v),
    "over_heads": lambda net, q, k, v: torch.einsum("bhnd,bgnd->bhgn", q, k).mean(2).unsqueeze(-1) * v,
    "over_features": lambda net, q, k, v: (v @ net.latents[0].T) @ net.latents[0],
    "other_keys": lambda net, q, k, v: (q @ (k.mT @ v)) / (q @ v.exp().sum(-2).unsqueeze(-1) + 1),
    "other_queries": lambda net, q, k, v: (q @ (k.mT @ v)) / (v @ k.exp().sum(-2).unsqueeze(-1) + 9),
    "sum_over_features": lambda net, q, k, v: (q @ (k.mT @ v)) / (k.exp().sum((-1, -2), keepdim=True) + 1),
    "cumsum_of_heads": lambda net, q, k, v: torch.einsum(
        "bhnd,bhndm->bhnm", q, torch.einsum("bhnd,bhnm->bhndm", k, v).cumsum(1)
    ),
    "cumsum_reversed": lambda net, q, k, v: torch.einsum(
        "bhnd,bhndm->bhnm", q, torch.einsum("bhnd,bhnm->bhndm", k, v).flip(2).cumsum(2).flip(2)
    ),
}


def error(value, exact):
    value, exact = value.detach().double(), exact.detach()
    return float((value - exact).norm() / exact.norm().clamp_min(1e-30))


def separable(unified):
    return [node for node in unified.integrals.values() if isinstance(node.kernel, Separable)]


def same(model, unified, x, slack=1e-6):
    exact = model.double()(x.double())
    model.to(x.dtype)
    assert error(unified(x), exact) <= 2 * error(model(x), exact) + slack


@pytest.mark.parametrize("name", SPELLINGS)
def test_spellings(name):
    torch.manual_seed(0)
    model, x = Net(SPELLINGS[name]).eval(), torch.randn(2, 3, 16, 16)
    unified = itnet.unify(model, x)
    (node,) = separable(unified)
    assert node.verification.status == "verified" and node.verification.error < 1e-9
    assert node.kernel.causal is (name in CAUSAL) and node.kernel.normalised is (name in NORMALISED)
    assert unified.report().to_dict()["coverage"] == 1.0
    same(model, unified, x)


@pytest.mark.parametrize("name", SPELLINGS)
def test_gradients(name):
    torch.manual_seed(0)
    model, x = Net(SPELLINGS[name]).double(), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    unified = itnet.unify(model, x, copy=True)
    assert separable(unified)
    found = []
    for network in (model, unified):
        loss = network(x).square().sum()
        grads = torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
        found.append(torch.cat([grad.flatten() for grad in grads if grad is not None]))
    assert error(found[1], found[0]) < 1e-11


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name):
    torch.manual_seed(0)
    model, x = Net(NEAR_MISSES[name]).eval(), torch.randn(2, 3, 16, 16)
    unified = itnet.unify(model, x)
    kernels = [node.kernel for node in separable(unified)]
    assert not any(kernel.normalised or kernel.causal or kernel.softmaxed for kernel in kernels)
    same(model, unified, x)


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_the_values_is_no_factor_of_the_weights(bias):
    model = Net(lambda net, q, k, v: (q @ k.mT).sigmoid() @ net.values(v)).eval()
    model.values = nn.Linear(SIZE, SIZE, bias=bias)
    unified = itnet.unify(model, torch.randn(2, 3, 16, 16))
    (node,) = separable(unified)
    assert (node.origin, node.kernel.query) == ("weighted sum", "")


@pytest.mark.parametrize("name", ["linear", "normalised", "causal_cumsum", "quadratic"])
def test_long_sequences_and_other_sizes(name):
    """The order of the products, and chunks of a causal sum, depend on the length."""
    torch.manual_seed(0)
    model = Net(SPELLINGS[name]).eval()
    unified = itnet.unify(model, torch.randn(2, 3, 16, 16))
    for sides in ((4, 4), (8, 28), (60, 44)):
        same(model, unified, torch.randn(1, 3, *sides), slack=1e-5)
