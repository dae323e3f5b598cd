"""The matrix memory of xLSTM."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.matrix_lstm import MatrixLSTM
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import check_case, conformance_cases, relative_error

# Below float32 states come in float32, as in the models; from a state on, K is not all that there is.
CASES = [
    case
    for lowering in ("scan", "chunked")
    for case in conformance_cases(MatrixLSTM, lowering)
    if case.dtype in (torch.float64, torch.float32)
    and not ("initial" in case.sample.draws and case.check in ("linear", "matrix"))
    and (lowering == "scan" or case.check in ("forward", "gradient"))
]
STATES = ("initial", "normaliser", "maximum")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case):
    check_case(case)


def _operands(time, scale=1.0, without=()):
    roles = [role for role in MatrixLSTM()._sample(1, 1, 1, 1, 1).draws if role not in without]
    sample = MatrixLSTM()._sample(2, 3, time, 4, 5, roles)
    operands = sample.operands(torch.float64, torch.Generator().manual_seed(0))
    return sample.spec, {role: one * scale if "gate" in role else one for role, one in operands.items()}


@pytest.mark.parametrize("lowering", ["scan", "chunked", "reference"])
def test_a_sequence_in_pieces_is_the_whole(lowering):
    spec, operands = _operands(20)
    run = find_lowering(lowering).build(spec).function
    whole, *last = run(**operands)
    pieces, state = [], [operands[role] for role in STATES]
    for start, stop in ((0, 1), (1, 1), (1, 8), (8, 20)):
        cut = {role: one[:, :, start:stop] for role, one in operands.items() if role not in STATES}
        piece, *state = run(**(operands | cut | dict(zip(STATES, state, strict=True))))
        pieces.append(piece)
    assert relative_error(torch.cat(pieces, 2), whole) <= 1e-13
    assert max(relative_error(a, b) for a, b in zip(state, last, strict=True)) <= 1e-13


@pytest.mark.parametrize("time", [50, 130])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 60.0])
@pytest.mark.parametrize("without", [(), STATES, ("maximum",), ("initial",)], ids=str)
def test_large_gates_neither_overflow_nor_lose_gradients(scale, time, without):
    """As the definition, forward and backward, states included, in float64; finite in float32."""
    spec, operands = _operands(time, scale, without)
    slopes = []
    for lowering in ("scan", "reference"):
        leaves = {role: one.clone().requires_grad_() for role, one in operands.items()}
        results = find_lowering(lowering).build(spec).function(**leaves)
        weighted = sum((out * torch.linspace(0.5, 1.5, out.numel()).view(out.shape)).sum() for out in results)
        gradients = torch.autograd.grad(weighted, list(leaves.values()))
        slopes.append([*results, torch.cat([gradient.flatten() for gradient in gradients])])
    assert max(relative_error(a, b) for a, b in zip(*slopes, strict=True)) <= 1e-10
    narrow = find_lowering("scan").build(spec).function(**{role: one.float() for role, one in operands.items()})
    assert all(bool(out.isfinite().all()) for out in narrow)
    assert relative_error(narrow[0].double(), slopes[0][0]) <= 1e-4


def test_a_gate_that_is_shut_forgets_all():
    spec, operands = _operands(9, without=STATES)
    gate = operands["forget_gate"]
    gate[..., 4] = -torch.inf
    run = find_lowering("scan").build(spec).function
    after = {role: one[:, :, 4:] for role, one in operands.items()}
    assert relative_error(run(**operands)[0][:, :, 4:], run(**after)[0]) <= 1e-12
    assert relative_error(run(**operands)[0], spec.evaluate(**operands)[0]) <= 1e-12


def test_half_precision_accumulates_in_float32():
    spec, operands = _operands(30)
    narrow = {role: one.bfloat16() for role, one in operands.items()}
    results = find_lowering("scan").build(spec).function(**narrow)
    for found, wanted in zip(results, spec.evaluate(**narrow), strict=True):
        assert found.dtype == wanted.dtype
        assert relative_error(found.double(), wanted.double()) <= (4e-3 if found is results[0] else 1e-5)
    assert [out.dtype for out in results] == [torch.bfloat16, *[torch.float32] * 3]
