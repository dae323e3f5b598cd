"""Gradients of wide matrix states, by products of matrices in chunks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from itnet_compiler.runtime.scan import backends, eager
from tests.conformance import relative_error

pytestmark = pytest.mark.skipif(not backends.available("cpu"), reason="numba is not installed")


def _operands(rows: int, time: int, keys: int, width: int, *, decay: bool = True, delta: bool = True) -> list:
    """Gradients of outputs and last state; query, key, value, beta, decay and a start."""
    draw = torch.Generator().manual_seed(rows + time)
    shapes = [(rows, time, width), (rows, keys, width), (rows, time, keys), (rows, time, keys), (rows, time, width)]
    grad, last, query, key, value = (torch.randn(shape, generator=draw, dtype=torch.float64) for shape in shapes)
    beta, factors = (torch.rand(rows, time, 1, generator=draw, dtype=torch.float64) for _ in range(2))
    given = [query, F.normalize(key, dim=-1), value, beta if delta else None, factors if decay else None]
    return [grad, last, *given, torch.randn(rows, keys, width, generator=draw, dtype=torch.float64)]


def _found(given: list) -> list[Tensor]:
    from itnet_compiler.runtime.scan.cpu import gradients

    return [one for one in gradients.gradients(*given) if one is not None]


def _expected(given: list) -> list[Tensor]:
    return [one for one in eager.matrix_scan_backward(*given) if one is not None]


@pytest.mark.parametrize("options", [{}, {"decay": False}, {"delta": False}], ids=str)
@pytest.mark.parametrize("sizes", [(3, 7, 5, 7), (2, 1, 17, 3), (1, 64, 16, 16), (2, 131, 1, 1)], ids=str)
def test_they_are_those_of_single_steps(sizes, options):
    given = _operands(*sizes, **options)
    assert relative_error(_found(given), _expected(given)) < 1e-12
    assert relative_error(_found([*given[:-1], None]), _expected([*given[:-1], None])) < 1e-12


def test_a_factor_may_be_zero_or_negative_or_tiny():
    given = _operands(2, 70, 5, 7)
    given[6][:, [3, 4, 20]] = 0.0
    given[6][:, 30:34] *= -1
    given[6][:, 40:60] = 1e-30
    assert relative_error(_found(given), _expected(given)) < 1e-12


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), pytest.param(torch.float32, 1e-5, marks=pytest.mark.exhaustive)],
    ids=str,
)
def test_the_operators_take_them_for_wide_states(dtype, tolerance, monkeypatch):
    from itnet_compiler.runtime.scan.cpu import gradients

    assert gradients.is_faster(64, 128, 128)
    assert not gradients.is_faster(64, 64, 64)
    assert not gradients.is_faster(8, 128, 128)
    _, _, *operands = _operands(2, 70, 96, 112)
    calls, plain = [], gradients.gradients
    monkeypatch.setattr(gradients, "gradients", lambda *given: calls.append(1) or plain(*given))
    results = []
    operands = [operands[0][:1], *operands[1:]]  # one query for both heads
    for plain_torch in (False, True):
        if plain_torch:
            monkeypatch.setattr(backends, "of", lambda tensor: eager)
        given = [one.to(torch.float64 if plain_torch else dtype).requires_grad_() for one in operands]
        y, last = torch.ops.itnet.delta_scan(*given)
        results.append(torch.autograd.grad(y.square().sum() + last.sum(), given))
    assert calls == [1]
    assert relative_error(*results) < tolerance


def test_they_do_not_depend_on_the_number_of_threads():
    given = _operands(4, 70, 96, 96)
    before = torch.get_num_threads()
    try:
        results = []
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(_found(given))
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
