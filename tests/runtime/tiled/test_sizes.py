"""Tiled integrals of random structure and size against the dense definition in float64."""

from __future__ import annotations

import random

import pytest
import torch

from itnet_compiler.ir.domain import Band, Keys
from itnet_compiler.ir.mlp import Mlp
from itnet_compiler.lowering.base import find_lowering

ROLES = Mlp.samples()[0].spec.operands
FREE = ("absolute", "measure", "mask")
LENGTHS = (1, 2, 7, 15, 16, 17, 63, 64, 65, 127, 129, 300)


def _sample(seed):
    """A kernel, a domain and sizes, by chance."""
    pick = random.Random(seed)
    domains = [Keys(), Keys(causal=True), Band(pick.randrange(90), pick.choice([None, 0, 5])), Band(None, 3)]
    kernel = Mlp(pick.choice([1, 1, 2, 3]), normalise=pick.random() < 0.5)
    roles = tuple(role for role in ROLES if role not in FREE or pick.random() < 0.6)
    return kernel._sample(
        pick.choice(domains),
        roles,
        batch=pick.choice([1, 2, 3, 9]),
        heads=pick.choice([1, 2, 3, 5, 8]),
        lengths=(pick.choice(LENGTHS), pick.choice(LENGTHS)),
        width=pick.choice([1, 2, 3, 16, 17]),
        hidden=pick.choice([1, 3, 4, 5, 8, 13, 32]),
        axes=pick.choice([1, 2, 3]),
    )


def _run(sample, drawn, name, dtype):
    leaves = []

    def live(value):
        if isinstance(value, list):
            return [live(item) for item in value]
        if value.dtype != torch.bool:
            value = value.to(dtype).requires_grad_()
            leaves.append(value)
        return value

    operands = {role: live(value) for role, value in drawn.items()}
    output = find_lowering(name).build(sample.spec).function(**operands)
    pull = torch.linspace(-1, 1, output.numel(), dtype=torch.float64).reshape(output.shape).to(dtype)
    return [output, *torch.autograd.grad(output, leaves, pull, allow_unused=True, materialize_grads=True)]


def _compare(sample, drawn):
    found, expected = (_run(sample, drawn, *how) for how in (("tiled", torch.float32), ("reference", torch.float64)))
    scale = max(gradient.norm().item() for gradient in expected[1:])
    for mine, theirs in zip(found, expected, strict=True):
        floor = 1e-6 if mine is found[0] else max(0.1 * scale, 1e-6)
        assert (mine.double() - theirs).norm().item() <= 1e-4 * max(theirs.norm().item(), floor)


CHANCE = [pytest.param(seed, marks=() if seed < 4 else pytest.mark.exhaustive) for seed in range(60)]


@pytest.mark.parametrize("seed", CHANCE)
def test_by_chance(seed):
    sample = _sample(seed)
    drawn = sample.operands(torch.float64, torch.Generator().manual_seed(seed))
    if "mask" in drawn and seed % 3:
        drawn["mask"] = drawn["mask"][:, :1] if seed % 3 == 1 else drawn["mask"][:1]
    _compare(sample, drawn)


@pytest.mark.parametrize("lengths", [(3, 4097), (4097, 3), (4096, 1), (1, 4095)], ids=str)
@pytest.mark.parametrize("normalise", [False, True])
def test_long(lengths, normalise):
    sample = Mlp(normalise=normalise)._sample(Keys(), ROLES, lengths=lengths, batch=1)
    _compare(sample, sample.operands(torch.float64, torch.Generator().manual_seed(0)))
