"""Matrix-state recurrences as the models write them."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.memory import GatedDelta, StateSpaceDual
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import check_case, conformance_cases, relative_error

CASES = [*conformance_cases(StateSpaceDual, "scan"), *conformance_cases(GatedDelta, "scan")]
CASES += [case for case in conformance_cases(StateSpaceDual, "chunked") if case.check in ("forward", "gradient")]
# Below that the state, and Mamba-2's output, come in float32, as in the models; see the last test.
CASES = [case for case in CASES if case.dtype in (torch.float64, torch.float32)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{case.lowering}")
def test_conformance(case):
    check_case(case)


def test_half_precision_accumulates_in_float32():
    for kernel in (StateSpaceDual(softplus=True), GatedDelta(1e-6)):
        sample = kernel.samples()[0]
        operands = sample.operands(torch.bfloat16, torch.Generator().manual_seed(0))
        wanted = torch.float32 if isinstance(kernel, StateSpaceDual) else torch.bfloat16
        exact = sample.spec.evaluate(**{role: value.double() for role, value in operands.items()})
        for y, last in (
            find_lowering("scan").build(sample.spec).function(**operands),
            sample.spec.evaluate(**operands),
        ):
            assert (y.dtype, last.dtype) == (wanted, torch.float32)
            assert relative_error(last, exact[1]) <= 1e-2


@pytest.mark.parametrize("lowering", ["scan", "reference", "chunked"])
@pytest.mark.parametrize("roles", [(), ("input", "delta", "A", "B", "C")])
def test_the_result_is_contiguous_whatever_the_operands_are(lowering, roles):
    """Models view it as [batch, time, heads · width] at once, as their own functions allow."""
    for kernel in (StateSpaceDual(), GatedDelta(1e-6)):
        if (lowering == "chunked" or roles) and isinstance(kernel, GatedDelta):
            continue
        sample = kernel.miniature(Past(), roles)
        operands = sample.operands(torch.float32, torch.Generator().manual_seed(0))
        moved = {role: value.mT.contiguous().mT if value.dim() > 1 else value for role, value in operands.items()}
        y, _ = find_lowering(lowering).build(sample.spec).function(**moved)
        assert y.is_contiguous()
