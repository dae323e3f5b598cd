"""The lowering of loops over rows: when it is chosen, and what it leaves to the library's."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.body import Body, Call, Progression, Ref
from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.loop import Loop
from itnet_compiler.lowering.base import default_lowering, find_lowering
from tests.conformance import check_case, conformance_cases
from tests.runtime.rows.steps import STEPS, example, loop

pytest.importorskip("llvmlite")

FUSED = find_lowering("fused")
CASES = [
    case
    for case in conformance_cases(Loop, "fused")
    if case.check in ("forward", "gradient") and FUSED.supports(case.sample.spec).ok
]

ROLES = ("initial", "inputs", "shared")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case):
    check_case(case)


@pytest.mark.parametrize("name", STEPS)
def test_it_is_the_default_and_gives_finals(name):
    given = example(name, 3, 4, 1)
    spec = Spec(loop(name, given, 1), Past(), "loop", ROLES)
    assert default_lowering(spec).name == "fused"
    found, wanted = FUSED.build(spec).function(*given.values()), spec.kernel.evaluate(Past(), **given)
    torch.testing.assert_close(tuple(found), tuple(wanted))


@pytest.mark.parametrize("change", ["dtype", "rows"])
def test_other_operands_run_in_the_library(change):
    given = example("sine", 3, 4, 1)
    lowered = FUSED.build(Spec(loop("sine", given, 1), Past(), "loop", ROLES))
    other = {role: [one.bfloat16() if change == "dtype" else one for one in group] for role, group in given.items()}
    if change == "rows":  # one row that is repeated
        other["initial"] = [other["initial"][0][:1]]
    kernel = lowered.function(*other.values()), loop("sine", given, 1).evaluate(Past(), **other)
    assert torch.equal(kernel[0][0], kernel[1][0])


H, X, W, FIRST = Ref("carry", 0), Ref("step", 0), Ref("shared", 0), Ref("local", 0)


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ((Call("aten.softmax.int", (H, 0)),), "not known to act on rows alone"),
        ((Call("aten.mul.Tensor", (H, Progression(0.5, 0.25))),), "changes with the step"),
        ((Call("aten.cat.default", ((H, X), 0)),), "along the rows"),
        ((Call("aten.add.Tensor", (H, W)),), "a shared matrix is no factor"),
        ((Call("aten.matmul.default", (H, W)),), "not with a matrix that all steps share"),
        ((Call("aten.softplus.default", (H,)),), "no vector form of"),
        ((Call("aten.slice.Tensor", (H, 1, 0, 2)),), "changes its width"),
    ],
)
def test_what_is_more_than_rows_is_refused_with_its_reason(calls, reason):
    shapes = (
        ("initial", (((3, 4), "float"),)),
        ("inputs", (((3, 5, 4), "float"),)),
        ("shared", (((2, 3, 4), "float"),)),
    )
    spec = Spec(Loop(Body(calls, (FIRST,), (FIRST,)), None, (1,), (1,), shapes), Past(), "loop", ROLES)
    support = FUSED.supports(spec)
    assert not support.ok
    assert reason in support.reasons[0]
