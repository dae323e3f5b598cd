"""The lowering that runs all steps at once: what it takes, what it leaves to the library, and what it says."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import itnet
from itnet_compiler.errors import LoweringError
from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.gated import Gated
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.loop import Loop
from itnet_compiler.ir.stationary import Stationary
from itnet_compiler.lowering.base import default_lowering, find_lowering
from tests.conformance import check_case, conformance_cases, relative_error
from tests.runtime.rows.steps import STEPS, example, loop

NEWTON = find_lowering("newton")
CASES = [
    case
    for family in (Loop, Gated)
    for case in conformance_cases(family, "newton")
    if case.check in ("forward", "gradient") and not case.is_exhaustive and NEWTON.supports(case.sample.spec).ok
]

ROLES = ("initial", "inputs", "shared")


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case):
    check_case(case)


@pytest.mark.parametrize("name", STEPS)
def test_it_gives_outputs_and_finals_and_is_never_a_default(name):
    given = example(name, 3, 7, 1, torch.float64)
    spec = Spec(loop(name, given, 1), Past(), "loop", ROLES)
    found, wanted = NEWTON.build(spec).function(*given.values()), spec.kernel.evaluate(Past(), **given)
    assert relative_error(tuple(found), tuple(wanted)) < 1e-13
    assert default_lowering(spec).name != "newton"
    assert not NEWTON.exact


@pytest.mark.parametrize("change", ["dtype", "rows", "no rows"])
def test_other_operands_run_in_the_library(change):
    given = example("sine", 0 if change == "no rows" else 3, 4, 1)
    if change == "dtype":
        given = {role: [one.bfloat16() for one in group] for role, group in given.items()}
    if change == "rows":  # one row that is repeated
        given["initial"] = [given["initial"][0][:1]]
    spec = Spec(loop("sine", example("sine", 3, 4, 1), 1), Past(), "loop", ROLES)
    found, wanted = (find_lowering(name).build(spec).function(*given.values())[0] for name in ("newton", "library"))
    assert torch.equal(found, wanted)


@pytest.mark.parametrize(
    ("kernel", "domain", "reason"),
    [
        (Gated("gru"), Past(single_step=True), "a single step"),
        (Gated("lstm", projection=True), Past(), "projected"),
        (Gated("lstm", layers=2, dropout=0.5, training=True), Past(), "dropout"),
        (Stationary(), Past(), "no nonlinear recurrence"),
        (Loop(STEPS["sine"][0], 4), Past(), "no axis of rows"),
    ],
    ids=str,
)
def test_it_says_why_not(kernel, domain, reason):
    support = NEWTON.supports(Spec(kernel, domain, "loop", ()))
    assert not support.ok
    assert reason in support.reasons[0]


class Sine(nn.Module):
    def forward(self, x):
        h, outs = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.sin(0.9 * h + x[:, t])
            outs.append(h)
        return torch.stack(outs, 1), h


def test_a_model_and_its_copy_say_how_near_they_came():
    torch.manual_seed(0)
    model = nn.Sequential(nn.GRU(3, 4, 2, batch_first=True, bidirectional=True)).double()
    x = torch.randn(5, 9, 3, dtype=torch.float64)
    unified = itnet.unify(model, x)
    itnet.lower(unified, method="newton", tolerance=1e-10)
    for one in (unified, copy.deepcopy(unified)):
        for found, wanted in zip(one(x), model(x), strict=True):
            assert relative_error(found, wanted) < 1e-8
    (node,) = unified.integrals.values()
    assert (node.plan.lowering, node.plan.exact, node.plan.tolerance) == ("newton", False, 1e-10)
    assert "newton, approximate; each step to 1e-10 of its state" in unified.explain("*")
    assert "last run of this step: 9 steps, " in node.source()
    itnet.lower(unified, method="newton")
    assert "32 roundings" in unified.explain("*")
    assert node.plan.tolerance is None
    assert torch.equal(unified.reset()(x)[0], model(x)[0])


def test_what_is_compiled_and_exported_runs_it():
    x = torch.randn(2, 9, 4)
    unified = itnet.lower(itnet.unify(Sine(), x), method="newton")
    exported = torch.export.export(unified, (x,))
    assert "newton_loop" in exported.graph_module.code
    compiled = torch.compile(unified, backend="eager", fullgraph=True)
    for run in (exported.module(), compiled):
        for found, wanted in zip(run(x), Sine()(x), strict=True):
            torch.testing.assert_close(found, wanted)


def test_a_backward_loop_and_a_state_in_and_out():
    class Backward(nn.Module):
        def forward(self, x, h):
            outs = []
            for t in reversed(range(x.shape[1])):
                h = torch.tanh(0.5 * h + x[:, t])
                outs.append(h)
            return torch.stack(outs[::-1], 1), h

    x, h = torch.randn(3, 8, 4, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    unified = itnet.lower(itnet.unify(Backward(), (x, h)), method="newton")
    assert {node.plan.lowering for node in unified.integrals.values()} == {"newton"}
    results = []
    for run in (unified, Backward()):
        leaves = [one.clone().requires_grad_() for one in (x, h)]
        made = run(*leaves)
        sum(one.sin().sum() for one in made).backward()
        results.append([*made, *(one.grad for one in leaves)])
    torch.testing.assert_close(*results)


def test_a_tolerance_that_is_none_is_refused():
    unified = itnet.unify(Sine(), torch.randn(2, 9, 4), verify=False)
    with pytest.raises(LoweringError, match="takes no tolerance"):
        itnet.lower(unified, method="library", tolerance=1e-3)
    for tolerance in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(LoweringError, match="is no tolerance"):
            itnet.lower(unified, method="newton", tolerance=tolerance)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("units", [4, 40])
@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh"])
def test_on_a_device(cell, units, dtype):
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    sample = Gated(cell, batch_first=True)._sample(Past(), time=257, batch=3, features=5, units=units)
    results = []
    for name, kind in (("newton", dtype), ("reference", torch.float64)):
        operands = sample.operands(dtype, torch.Generator().manual_seed(0))
        operands["weights"] = [one / units**0.5 for one in operands["weights"]]  # they are chaotic as drawn
        move = lambda one, kind=kind: one.to("cuda", kind).requires_grad_()  # noqa: E731
        operands = torch.utils._pytree.tree_map(move, operands)
        made = find_lowering(name).build(sample.spec).function(**operands)
        sum(one.square().sum() for one in made).backward()
        results.append([*made, *(one.grad for one in torch.utils._pytree.tree_leaves(operands))])
    tolerance = 1e-4 if dtype == torch.float32 else 1e-11
    for found, expected in zip(*results, strict=True):
        assert (found.double() - expected).norm() <= tolerance * expected.norm()
