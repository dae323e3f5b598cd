"""The norm of heads: mean square 1 at first, the identity where it is unlearned."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.nn.norm import HeadNorm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_starts_with_mean_square_one_and_can_become_the_identity(dtype):
    z = 30 * torch.randn(2, 5, 3, 8).to(dtype)
    norm = HeadNorm(3).to(dtype)
    y = norm(z)
    assert y.dtype == dtype
    torch.testing.assert_close(y.double().square().mean(-1), torch.ones(2, 5, 3).double(), rtol=2e-2, atol=0)
    torch.nn.init.zeros_(norm.power)
    assert torch.equal(norm(z), z)


def test_gradients_also_of_a_head_of_zeros():
    norm, z = HeadNorm(3).double(), torch.randn(2, 3, 4, dtype=torch.float64)
    z[0, 1] = 0.0
    assert torch.equal(norm(z)[0, 1], z[0, 1])
    assert all(g.isfinite().all() for g in torch.autograd.grad(norm(z).sum(), list(norm.parameters())))
    z[0, 1] = 0.3
    power = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64, requires_grad=True)
    given = z.requires_grad_(), power
    assert torch.autograd.gradcheck(lambda z, p: torch.func.functional_call(norm, {"power": p}, z), given)
