"""``torch.ops.itnet.newton_loop``: against the steps one by one, and where it does not converge."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from itnet_compiler.errors import InputError
from itnet_compiler.ir.body import Body
from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.loop import Loop
from itnet_compiler.ir.row_step import row_step
from itnet_compiler.lowering.cells import cell_program
from itnet_compiler.lowering.outcomes import outcome_of
from itnet_compiler.runtime.newton import solve
from tests.runtime.rows.steps import STEPS, call, example, h, loop, v, x

TOLERANCE = 32 * torch.finfo(torch.float64).eps


def _run(kernel: Loop, given: dict[str, list[Tensor]], tolerance: float | None) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs and last carried values, and gradients of everything, all steps at once or (None) one by one."""
    leaves = {role: [one.detach().clone().requires_grad_() for one in group] for role, group in given.items()}
    length = leaves["inputs"][0].shape[kernel.axes[0]]
    how = str(row_step(kernel).program), kernel.axes, kernel.stacked, length
    if tolerance is None:
        found = torch.ops.itnet.row_loop(*leaves.values(), *how)
    else:
        found = torch.ops.itnet.newton_loop(*leaves.values(), *how, tolerance)
    made = found[: len(kernel.body.outputs) + len(kernel.body.carried)]
    generator = torch.Generator().manual_seed(1)
    slopes = [torch.randn(one.shape, generator=generator, dtype=torch.float64).to(one.dtype) for one in made]
    operands = [one for group in leaves.values() for one in group]
    return made, list(torch.autograd.grad(made, operands, slopes, allow_unused=True, materialize_grads=True))


def _kernel(body: Body, given: dict[str, list[Tensor]], axis: int) -> Loop:
    shapes = tuple((role, tuple((tuple(one.shape), "float") for one in group)) for role, group in given.items())
    return Loop(body, None, (axis,), (axis,), shapes)


@pytest.mark.parametrize("sizes", [(3, 63, 1), (1, 7, 0), (4, 1, 1), (7, 7, 1)])
@pytest.mark.parametrize("name", STEPS)
def test_it_is_the_loop_in_float64(name, sizes):
    batch, length, axis = sizes
    given = example(name, batch, length, axis, torch.float64)
    kernel = loop(name, given, axis)
    for mine, right in zip(_run(kernel, given, TOLERANCE), _run(kernel, given, None), strict=True):
        for found, wanted in zip(mine, right, strict=True):
            assert (found - wanted).norm() <= 1e-12 * wanted.norm() + 1e-14


@pytest.mark.parametrize("cell", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize(("units", "gain", "tolerance"), [(3, 1.0, 1e-13), (24, 0.3, 1e-7)])
def test_recurrent_cells_converge_with_whole_jacobians_and_unit_by_unit(cell, units, gain, tolerance):
    gates, states = {"lstm": 4, "gru": 3}.get(cell, 1), 1 + (cell == "lstm")
    program, steps = cell_program(cell, units, True), 96
    generator = torch.Generator().manual_seed(0)
    sizes = [*[(5, units)] * states, (steps, 5, gates * units), (gates * units, units), (gates * units,)]
    drawn = [torch.randn(size, generator=generator, dtype=torch.float64) for size in sizes]
    drawn[-2] *= gain * units**-0.5
    found = []
    for operator, extra in ((torch.ops.itnet.newton_loop, (tolerance,)), (torch.ops.itnet.row_loop, ())):
        leaves = [one.clone().requires_grad_() for one in drawn]
        initial, (given, *shared) = leaves[:states], leaves[states:]
        made = operator(initial, [given], shared, program, [0], [0], steps, *extra)[: 1 + states]
        sum(one.square().sum() for one in made).backward()
        found.append([*made, *(one.grad for one in leaves)])
    for mine, right in zip(*found, strict=True):
        assert (mine - right).norm() <= 100 * tolerance * right.norm()
    assert outcome_of(program).converged
    assert outcome_of(f"{program}\nreverse").converged


def test_values_that_meet_unit_by_unit_are_solved_together():
    pendulum = Body(
        (
            call("sin.default", h(0)),
            call("sub.Tensor", h(1), v(0), alpha=0.1),
            call("add.Tensor", v(1), x(0)),
            call("add.Tensor", h(0), v(2), alpha=0.1),
        ),
        (v(3), v(2)),
        (v(3),),
    )
    generator = torch.Generator().manual_seed(0)
    sizes = {"initial": [(2, 20), (2, 20)], "inputs": [(64, 2, 20)], "shared": []}
    given = {
        role: [torch.randn(size, generator=generator, dtype=torch.float64) / 9 for size in group]
        for role, group in sizes.items()
    }
    kernel = _kernel(pendulum, given, 0)
    for mine, right in zip(_run(kernel, given, 1e-13), _run(kernel, given, None), strict=True):
        torch.testing.assert_close(mine, right)
    key = str(row_step(kernel).program)
    assert outcome_of(key).converged
    assert outcome_of(f"{key}\nreverse").iterations <= 2  # blocks unit by unit are the whole Jacobian


def test_long_loops_are_solved_in_windows_and_only_a_window_that_fails_is_run_one_by_one(monkeypatch):
    monkeypatch.setattr(solve, "_NUMBERS", 1)
    monkeypatch.setattr(solve, "_LEAST_STEPS", 16)
    body = Body(
        (call("mul.Tensor", h(0), x(0)), call("mul.Tensor", v(0), v(0)), call("rsub.Scalar", v(1), 1)), (v(2),), (v(2),)
    )
    gain = torch.full((2, 70, 20), 0.3, dtype=torch.float64)
    gain[:, 16:32] = 1.4  # a chaotic stretch
    given = {"initial": [torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(2, 20)], "inputs": [gain], "shared": []}
    kernel = _kernel(body, given, 1)
    for mine, right in zip(_run(kernel, given, 1e-14), _run(kernel, given, None), strict=True):
        torch.testing.assert_close(mine, right)
    outcome = outcome_of(str(row_step(kernel).program))
    assert (outcome.steps, outcome.alone) == (70, 16)
    assert "16 steps were run one by one" in str(outcome)


def test_a_chaotic_map_falls_back_and_is_right():
    logistic = Body(
        (call("rsub.Scalar", h(0), 1), call("mul.Tensor", h(0), v(0)), call("mul.Tensor", v(1), x(0))), (v(2),), (v(2),)
    )
    start = torch.linspace(0.1, 0.9, 6, dtype=torch.float64).reshape(2, 3)
    given = {"initial": [start], "inputs": [torch.full((2, 200, 3), 3.99, dtype=torch.float64)], "shared": []}
    kernel = _kernel(logistic, given, 1)
    (made, _), exact = _run(kernel, given, TOLERANCE), kernel.evaluate(Past(), **given)[0]
    outcome = outcome_of(str(row_step(kernel).program))
    assert not outcome.converged
    assert outcome.iterations <= solve.iterations_allowed(200) < 40
    assert "one by one" in str(outcome)
    assert torch.equal(made[0], exact)


@pytest.mark.parametrize("factor", [1e200, float("nan")])
def test_a_state_that_overflows_does_so_as_in_the_loop(factor):
    body = Body((call("mul.Tensor", h(0), x(0)),), (v(0),), (v(0),))
    given = {"initial": [torch.ones(2, 3)], "inputs": [torch.ones(2, 9, 3)], "shared": []}
    given = {role: [one.double() for one in group] for role, group in given.items()}
    given["inputs"][0][0, 4:] = factor
    kernel = _kernel(body, given, 1)
    (found, *_), _ = _run(kernel, given, TOLERANCE)
    assert torch.equal(found.nan_to_num(7.0), kernel.evaluate(Past(), **given)[0].nan_to_num(7.0))
    assert not outcome_of(str(row_step(kernel).program)).converged


def test_a_wide_tolerance_is_kept_and_saves_iterations():
    given = example("sine", 3, 63, 1, torch.float64)
    kernel, key = loop("sine", given, 1), str(row_step(loop("sine", given, 1)).program)
    seen = []
    for tolerance in (1e-2, 1e-14):
        (states, *_), _ = _run(kernel, given, tolerance)
        before = torch.cat([given["initial"][0].unsqueeze(1), states[:, :-1]], 1)
        step = torch.sin(0.9 * before + given["inputs"][0])
        seen.append((outcome_of(key).iterations, float((step - states).detach().abs().max())))
        assert outcome_of(key).residual <= tolerance
    assert seen[0][0] < seen[1][0]
    assert 0.0 < seen[0][1] <= 1e-2
    assert seen[1][1] <= 1e-13


def test_its_gradient_can_be_differentiated():
    given = example("sine", 2, 5, 1, torch.float64)
    kernel = loop("sine", given, 1)
    how = str(row_step(kernel).program), kernel.axes, kernel.stacked, 5, TOLERANCE

    def run(initial, sequence):
        return torch.ops.itnet.newton_loop([initial], [sequence], [], *how)[0]

    operands = [one.clone().requires_grad_() for one in (given["initial"][0], given["inputs"][0])]
    (first,) = torch.autograd.grad(run(*operands).sin().sum(), operands[1], create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), operands[0])
    plain = [one.clone().requires_grad_() for one in (given["initial"][0], given["inputs"][0])]
    made = kernel.evaluate(Past(), initial=[plain[0]], inputs=[plain[1]], shared=[])[0]
    (first,) = torch.autograd.grad(made.sin().sum(), plain[1], create_graph=True)
    torch.testing.assert_close(second, torch.autograd.grad(first.square().sum(), plain[0])[0])


def test_the_operator_is_well_registered():
    given = example("swapped", 2, 4, 1, torch.float64)
    kernel = loop("swapped", given, 1)
    leaves = [[one.requires_grad_() for one in group] for group in given.values()]
    how = str(row_step(kernel).program), list(kernel.axes), list(kernel.stacked), 4, TOLERANCE
    checks = "test_schema", "test_autograd_registration", "test_faketensor"
    torch.library.opcheck(torch.ops.itnet.newton_loop.default, (*leaves, *how), test_utils=checks)


def test_no_rows_and_no_steps():
    given = example("sine", 0, 4, 1, torch.float64)
    kernel = loop("sine", given, 1)
    made, slopes = _run(kernel, given, TOLERANCE)
    assert [one.shape for one in (*made, *slopes)] == [(0, 4, 19), (0, 19), (0, 19), (0, 4, 19)]
    with pytest.raises(InputError, match="without steps"):
        _run(kernel, example("sine", 2, 0, 1, torch.float64), TOLERANCE)
