"""``torch.ops.itnet.row_loop``: machine code and plain torch against the loop itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from itnet_compiler.errors import InputError
from itnet_compiler.ir.body import Body, Call, Ref
from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.loop import Loop
from itnet_compiler.ir.row_step import row_step
from tests.runtime.rows.steps import STEPS, Operands, example, loop

compiled = pytest.mark.usefixtures("_llvm")

Results = tuple[list[Tensor], list[Tensor]]


@pytest.fixture
def _llvm() -> None:
    pytest.importorskip("llvmlite")


def _fused(kernel: Loop, given: Operands) -> list[Tensor]:
    """Outputs, then last carried values."""
    length = given["inputs"][0].shape[kernel.axes[0]]
    text = str(row_step(kernel).program)
    found = torch.ops.itnet.row_loop(*given.values(), text, kernel.axes, kernel.stacked, length)
    return found[: len(kernel.body.outputs)]


def _plain(kernel: Loop, given: Operands) -> list[Tensor]:
    return list(kernel.evaluate(Past(), **given)[: len(kernel.body.outputs)])


def _with_gradients(run: Callable[[Loop, Operands], list[Tensor]], kernel: Loop, given: Operands) -> Results:
    leaves = {role: [one.detach().clone().requires_grad_() for one in group] for role, group in given.items()}
    made = run(kernel, leaves)
    slopes = [torch.randn(one.shape, generator=torch.Generator().manual_seed(1)).to(one.dtype) for one in made]
    operands = [one for group in leaves.values() for one in group]
    found = torch.autograd.grad(made, operands, slopes, allow_unused=True)
    zeros = zip(operands, found, strict=True)
    return made, [torch.zeros_like(one) if grad is None else grad for one, grad in zeros]


def _doubled(given: Operands) -> Operands:
    return {role: [one.double() for one in group] for role, group in given.items()}


def _error(found: list[Tensor], exact: list[Tensor]) -> float:
    pairs = zip(found, exact, strict=True)
    return max(float(((one.double() - other).norm() / (other.norm() + 1e-30)).detach()) for one, other in pairs)


@compiled
@pytest.mark.parametrize("sizes", [(5, 3, 1), (1, 70, 0), (9, 1, 1)])
@pytest.mark.parametrize("name", STEPS)
def test_machine_code_is_as_exact_as_the_loop(name: str, sizes: tuple[int, int, int]) -> None:
    batch, length, axis = sizes
    given = example(name, batch, length, axis)
    kernel = loop(name, given, axis)
    exact = _with_gradients(_plain, kernel, _doubled(given))
    own, other = (_with_gradients(run, kernel, given) for run in (_fused, _plain))
    for mine, theirs, right in zip(own, other, exact, strict=True):
        assert _error(mine, right) <= 2 * _error(theirs, right) + 1e-6


@pytest.mark.parametrize("name", STEPS)
def test_plain_torch_is_the_loop_in_float64(name: str) -> None:
    given = example(name, 3, 5, 1, torch.float64)
    kernel = loop(name, given, 1)
    for mine, right in zip(*(_with_gradients(run, kernel, given) for run in (_fused, _plain)), strict=True):
        assert _error(mine, right) < 1e-12


@compiled
def test_results_do_not_depend_on_threads() -> None:
    given = example("normalised", 7, 66, 1)
    kernel, before, found = loop("normalised", given, 1), torch.get_num_threads(), []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(_fused(kernel, given)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@compiled
def test_rows_in_two_axes_and_strided_inputs() -> None:
    given = example("sine", 6, 5, 1)
    deep = {role: [one.unflatten(0, (2, 3)).transpose(0, 1) for one in group] for role, group in given.items()}
    kernel = loop("sine", deep, 2)
    torch.testing.assert_close(_fused(kernel, deep), _plain(kernel, deep))


@compiled
def test_the_operator_keeps_the_rules() -> None:
    given = example("swapped", 3, 4, 1)
    kernel = loop("swapped", given, 1)
    leaves = [[one.requires_grad_() for one in group] for group in given.values()]
    arguments = (*leaves, str(row_step(kernel).program), list(kernel.axes), list(kernel.stacked), 4)
    torch.library.opcheck(torch.ops.itnet.row_loop.default, arguments)


@compiled
def test_gradients_can_be_differentiated_again() -> None:
    given = example("normalised", 2, 3, 1, torch.float64)
    kernel, found = loop("normalised", given, 1), []
    for run in (_fused, _plain):
        leaves = {role: [one.detach().requires_grad_() for one in group] for role, group in given.items()}
        operands = [one for group in leaves.values() for one in group]
        first = torch.autograd.grad(run(kernel, leaves)[0].square().sum(), operands, create_graph=True)
        found.append(torch.autograd.grad(sum(one.square().sum() for one in first), operands))
    torch.testing.assert_close(*found)


def test_operands_that_do_not_fit_are_refused() -> None:
    given = example("sine", 3, 4, 1)
    kernel = loop("sine", given, 1)
    with pytest.raises(InputError, match="the loop takes"):
        _fused(kernel, {**given, "inputs": [given["inputs"][0][:2]]})


@compiled
def test_gradients_of_a_loop_that_is_given_nothing_and_keeps_no_step() -> None:
    body = Body(
        (
            Call("aten.linear.default", (Ref("carry", 0), Ref("shared", 0))),
            Call("aten.add.Tensor", (Ref("local", 0), Ref("shared", 1))),
            Call("aten.sin.default", (Ref("local", 1),)),
        ),
        carried=(Ref("local", 2),),
        finals=(Ref("local", 2),),
    )
    sizes = ((3, 4), (4, 4), (3, 4))
    operands = [torch.rand(size).sub(0.5).requires_grad_() for size in sizes]
    given = {"initial": operands[:1], "inputs": [], "shared": operands[1:]}
    shapes = tuple((role, tuple((tuple(one.shape), "float") for one in group)) for role, group in given.items())
    kernel = Loop(body, 7, (), (), shapes)
    text = str(row_step(kernel).program)
    found = torch.ops.itnet.row_loop(*given.values(), text, kernel.axes, kernel.stacked, 7)[0]
    wanted = kernel.evaluate(Past(), **given)[0]
    torch.testing.assert_close(found, wanted)
    for double in (True, False):
        slopes = [torch.autograd.grad(one.sum(), operands, create_graph=double) for one in (found, wanted)]
        torch.testing.assert_close(*slopes)
