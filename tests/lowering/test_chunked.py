"""The chunked form of matrix-state recurrences."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.matrix_state import MatrixState
from itnet_compiler.ir.selective import Selective
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import check_case, conformance_cases

CASES = [
    case
    for case in conformance_cases(MatrixState, "chunked")
    if case.check in ("forward", "gradient", "miniature") and not case.sample.spec.kernel.delta
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case):
    check_case(case)


def test_a_decay_of_zero_forgets_and_nothing_overflows():
    kernel, sizes = MatrixState("diagonal"), (1, 40, 3)
    decay = torch.full(sizes, 1e-30)
    decay[:, 20] = 0.0
    operands = {"query": torch.ones(sizes), "key": torch.ones(sizes), "value": torch.ones(1, 40, 2), "decay": decay}
    y, last = find_lowering("chunked").build(Spec(kernel, Past(), "gla", tuple(operands))).function(**operands)
    torch.testing.assert_close(y, torch.full_like(y, 3.0))
    torch.testing.assert_close(last, torch.ones_like(last))


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [(MatrixState(delta=True), "solves a triangle in each"), (Selective(), "no state to multiply as a matrix")],
    ids=str,
)
def test_it_says_why_not(kernel, reason):
    support = find_lowering("chunked").supports(Spec(kernel, Past(), "recurrence", ()))
    assert not support.ok
    assert reason in support.reasons[0]
