"""Time-invariant recurrences as convolutions."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.semiseparable import Diagonal
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import check_case, conformance_cases, relative_error

CASES = [
    case
    for case in conformance_cases(Diagonal, "fft")
    if case.check in ("forward", "gradient", "miniature") and case.sample.spec.kernel.constant
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case):
    check_case(case)


@pytest.mark.parametrize("reverse", [False, True])
def test_complex_states_with_a_start(reverse):
    kernel = Diagonal(reverse=reverse, constant=True)
    decay = torch.polar(torch.rand(3, dtype=torch.float64), torch.randn(3, dtype=torch.float64))
    operands = {"decay": decay, "input": torch.randn(50, 3, dtype=torch.float64), "initial": decay.conj()}
    spec = Spec(kernel, Past(), "s4d", tuple(operands))
    expected = kernel.evaluate(Past(), **operands)
    for name in ("fft", "scan"):
        for found, wanted in zip(find_lowering(name).build(spec).function(**operands), expected, strict=True):
            assert relative_error(torch.view_as_real(found), torch.view_as_real(wanted)) <= 1e-13
