"""The layer at lengths around the sizes of tiles: every two of its options together, against the dense definition.

The definition is evaluated in float64 at a few queries, with the domain written out as a mask.
"""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from itnet.nn import IntegralTransform, grid

from itnet_compiler.ir.domain import Keys

KERNELS = {"plain": {}, "normalised": {"normalise": True, "depth": 2}, "relaxed": {"kernel": "softmax+mlp"}}
DOMAINS = {"all": {}, "causal": {"causal": True}, "band": {"window": (5, 3)}}
MASKS = ("none", "padding", "pairs", "weights")
TOLERANCES = {torch.float32: 3e-5, torch.bfloat16: 3e-2, torch.float64: 1e-10}
LENGTHS = (1, 2, 63, 65, 257, 1025, 4097)


def _pairwise():
    """Few combinations that hold every two options."""
    left = {
        frozenset({(a, x), (b, y)})
        for (a, one), (b, two) in itertools.combinations(enumerate((KERNELS, DOMAINS, MASKS, TOLERANCES)), 2)
        for x, y in itertools.product(one, two)
    }
    every = list(itertools.product(KERNELS, DOMAINS, MASKS, TOLERANCES))
    while left:
        pairs = {c: {frozenset(p) for p in itertools.combinations(enumerate(c), 2)} for c in every}
        best = max(every, key=lambda c: len(pairs[c] & left))
        left -= pairs[best]
        yield best


def _cases():
    for number, combination in enumerate(_pairwise()):
        for place, length in enumerate(LENGTHS):
            few = length <= 257 and number % 5 == place
            yield pytest.param(length, *combination, marks=() if few else pytest.mark.exhaustive)


def _allowed(length, domain, mask):
    """bool (B, N, M): the domain and the mask."""
    i, j = torch.arange(length)[:, None], torch.arange(length)
    inside = {"all": j > -1, "causal": j <= i, "band": (j >= i - 5) & (j <= i + 3)}[domain].expand(length, length)
    if mask is None:
        return inside[None]
    return inside & (mask if mask.dim() == 3 else mask[:, None])


@pytest.mark.parametrize(("length", "kernel", "domain", "kind", "dtype"), list(_cases()))
def test_at_any_length_it_is_the_definition(length, kernel, domain, kind, dtype):
    draw = torch.Generator().manual_seed(length)
    torch.manual_seed(length)
    layer = IntegralTransform(24, heads=3, hidden=9, fourier=3, absolute=2, **KERNELS[kernel], **DOMAINS[domain])
    if layer.kernel.gate is not None:
        torch.nn.init.constant_(layer.kernel.gate, 0.5)
    layer.to(dtype)
    batch = 2 if length < 1000 else 1
    x = torch.randn(batch, length, 24, generator=draw).to(dtype).requires_grad_()
    mask = weights = None
    if kind == "padding":
        mask = torch.arange(length) < torch.tensor([[length // 2], [length]])[:batch]
    elif kind == "pairs":
        mask = torch.rand(batch, length, length, generator=draw) < 0.7
    elif kind == "weights":
        weights = torch.rand(batch, length, generator=draw) / length
    rows = torch.unique(torch.linspace(0, length - 1, 40).long())
    places = grid((length,), x)
    y = layer(x, positions=places, weights=weights, mask=mask)[:, rows]

    dense = copy.deepcopy(layer).double()
    dense.method, dense.domain = "reference", Keys()
    # What a mask of pairs leaves out does not change the measure; one of padding does.
    if weights is None and kind == "padding":
        weights = (1.0 / mask.sum(1, keepdim=True).clamp_min(1)).expand(batch, length)
    far = x.detach().double().requires_grad_()
    expected = dense(
        far[:, rows],
        far,
        places[:, rows].double(),
        places.double(),
        None if weights is None else weights.double(),
        _allowed(length, domain, mask)[:, rows],
    )
    pull = torch.linspace(-1, 1, expected.numel(), dtype=torch.float64).reshape(expected.shape)
    found = [y, *torch.autograd.grad(y, [x, *layer.parameters()], pull.to(dtype))]
    wanted = [expected, *torch.autograd.grad(expected, [far, *dense.parameters()], pull)]
    scale = max(gradient.norm().item() for gradient in wanted[1:])
    for place, (mine, theirs) in enumerate(zip(found, wanted, strict=True)):
        least = theirs.norm().item() if place == 0 else max(theirs.norm().item(), 0.1 * scale)
        assert (mine.double() - theirs).norm() <= TOLERANCES[dtype] * (1 if place == 0 else 3) * least + 1e-12


def test_results_are_the_same_bits_in_every_run():
    """Whatever the number of threads: tests/runtime/tiled/test_native.py."""
    torch.manual_seed(0)
    layer, x = IntegralTransform(24, heads=3, hidden=9, fourier=3), torch.randn(2, 257, 24)
    found = []
    for _ in range(2):
        y = layer(x)
        found.append([y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
