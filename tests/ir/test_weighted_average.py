"""RWKV's weighted average."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.weighted_average import WeightedAverage
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import check_case, conformance_cases, relative_error

# Below float32 states come in float32, as in the models; from a state on, K is not all that there is.
CASES = [
    case
    for case in conformance_cases(WeightedAverage, "scan")
    if case.dtype in (torch.float64, torch.float32)
    and not ("maximum" in case.sample.draws and case.check in ("linear", "matrix"))
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case):
    check_case(case)


def _operands(time, initial, scale=1.0):
    sample = WeightedAverage()._sample(2, time, 4, initial)
    operands = sample.operands(torch.float64, torch.Generator().manual_seed(0))
    return sample.spec, operands | {"key": operands["key"] * scale}


@pytest.mark.parametrize("lowering", ["scan", "reference"])
def test_a_sequence_in_pieces_is_the_whole(lowering):
    spec, operands = _operands(20, True)
    run = find_lowering(lowering).build(spec).function
    whole, *last = run(**operands)
    roles, pieces = ("numerator", "denominator", "maximum"), []
    state = [operands[role] for role in roles]
    for start, stop in ((0, 1), (1, 8), (8, 20)):
        cut = {role: operands[role][:, start:stop] for role in ("key", "value")}
        piece, *state = run(**(operands | cut | dict(zip(roles, state, strict=True))))
        pieces.append(piece)
    assert relative_error(torch.cat(pieces, 1), whole) <= 1e-14
    assert max(relative_error(a, b) for a, b in zip(state, last, strict=True)) <= 1e-14


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_large_keys_neither_overflow_nor_lose_gradients(scale):
    """As the definition, forward and backward, states included, in float64; finite in float32."""
    spec, operands = _operands(50, True, scale)
    slopes = []
    for lowering in ("scan", "reference"):
        leaves = {role: one.clone().requires_grad_() for role, one in operands.items()}
        results = find_lowering(lowering).build(spec).function(**leaves)
        weighted = sum((out * torch.linspace(0.5, 1.5, out.numel()).view(out.shape)).sum() for out in results)
        gradients = torch.autograd.grad(weighted, list(leaves.values()))
        slopes.append([*results, torch.cat([gradient.flatten() for gradient in gradients])])
    assert max(relative_error(a, b) for a, b in zip(*slopes, strict=True)) <= 1e-11
    narrow = find_lowering("scan").build(spec).function(**{role: one.float() for role, one in operands.items()})
    assert all(bool(out.isfinite().all()) for out in narrow)
    assert relative_error(narrow[0].double(), slopes[0][0]) <= 1e-4


def test_half_precision_accumulates_in_float32():
    spec, operands = _operands(30, True)
    narrow = {role: one.bfloat16() for role, one in operands.items()}
    results = find_lowering("scan").build(spec).function(**narrow)
    expected = spec.evaluate(**narrow)
    for found, wanted in zip(results, expected, strict=True):
        assert found.dtype == wanted.dtype
        assert relative_error(found.double(), wanted.double()) <= (4e-3 if found is results[0] else 1e-5)
    assert [out.dtype for out in results] == [torch.bfloat16, *[torch.float32] * 3]
