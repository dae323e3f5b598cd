"""Loops whose step is a program: conformance, and the numbers that change with the step."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.body import Body, Call, Progression, Ref
from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.loop import Loop
from tests.conformance import Case, check_case, conformance_cases

# The recurrence is not linear: there is no matrix. Steps that are given nothing have no source positions.
CASES = [case for case in conformance_cases(Loop) if case.check not in ("matrix", "causal", "miniature")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)


def test_a_progression_is_computed_as_the_source_does() -> None:
    width = 0.1
    assert [Progression(0.0, width).at(t) for t in range(9)] == [t * width for t in range(9)]
    assert [Progression(1, 1, 7).at(t) for t in range(9)] == [(t + 1) / 7 for t in range(9)]
    assert eval(Progression(1, 2, 3).source("t"), {"t": 4}) == 3.0


def test_carried_values_move_on_together() -> None:
    """a, b = b, a + b from 0 and 1."""
    a, b = Ref("carry", 0), Ref("carry", 1)
    body = Body(
        (Call("aten.add.Tensor", (a, b)),), carried=(b, Ref("local", 0)), outputs=(b,), finals=(Ref("local", 0),)
    )
    shapes = (("initial", (((1,), "float"),) * 2), ("inputs", ()), ("shared", ()))
    loop = Loop(body, 6, stacked=(0,), shapes=shapes)
    numbers, last = loop.evaluate(Past(), initial=[torch.zeros(1), torch.ones(1)], inputs=[], shared=[])
    assert numbers.flatten().tolist() == [1, 1, 2, 3, 5, 8]
    assert last.item() == 13
    assert loop.details() == ["%0 = add(%h0, %h1)", "%h0 ← %h1", "%h1 ← %0", "each %h1", "last %0"]
    assert loop.describe() == "gated(loop of 1 operators, length=6, carries=2)"
