"""The custom operators ``itnet::row_loop`` and its backward: schema, shapes, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...ir.pair.program import Program
from ...ir.row_reverse import irregular
from ..registering import keep_nothing, outside_dynamo, register
from ..tiled.backends import available
from .drive import Runner, backward, forward
from .plain import Plain, differentiable_gradients
from .problem import CHUNK, Problem

__all__ = ["CALL", "LIBRARY", "gradient_shapes", "once", "problem_of", "pull", "runner_of", "save"]

LIBRARY = torch.library.Library("itnet", "FRAGMENT")


def problem_of(
    initial: Sequence[Tensor],
    inputs: Sequence[Tensor],
    shared: Sequence[Tensor],
    program: str,
    axes: Sequence[int],
    stacked: Sequence[int],
    length: Any,
) -> Problem:
    """The arguments of an operator, put together."""
    groups = (tuple(initial), tuple(inputs), tuple(shared))
    return Problem(Program.parse(program), *groups, tuple(axes), tuple(stacked), length)


def runner_of(problem: Problem) -> type[Runner]:
    """What runs the steps of a problem one by one: machine code where there is some, else torch."""
    tensors = (*problem.initial, *problem.inputs, *problem.shared)
    device = problem.initial[0].device.type
    alike = all(one.dtype == torch.float32 and one.device.type == device for one in tensors)
    if not (alike and available(device)) or problem.rows == 0 or irregular(problem.program, len(problem.initial)):
        return Plain
    if device == "cpu":
        from .native import Native

        return Native
    from .gpu import Gpu, fits

    return Gpu if fits(problem.program, len(problem.initial)) else Plain


def row_loop(
    initial: Sequence[Tensor],
    inputs: Sequence[Tensor],
    shared: Sequence[Tensor],
    program: str,
    axes: Sequence[int],
    stacked: Sequence[int],
    length: int,
) -> list[Tensor]:
    """All steps of a loop over rows.

    Args:
        initial: Carried values before the first step, each (*lead, width).
        inputs: Sequences, each (*lead, width) with an axis of ``length`` steps.
        shared: What every step gets.
        program: Text of a ``RowStep.program``.
        axes: Axis of time of each of ``inputs``.
        stacked: Axis of time of each output.
        length: Number of steps.

    Returns:
        What is kept of every step, stacked; the carried values after the last step; the states before steps 0, 64,
        128 …, (steps, rows, width), for the backward pass.
    """
    problem = problem_of(initial, inputs, shared, program, axes, stacked, length)
    problem.check()
    outputs, lasts, kept = forward(runner_of(problem), problem)
    return [*outputs, *lasts, *kept]


def _shapes(*call: Any) -> list[Tensor]:
    problem = problem_of(*call)
    return problem.results((problem.length + CHUNK - 1) // CHUNK)


def row_loop_backward(grads: Sequence[Tensor], kept: Sequence[Tensor], *call: Any) -> list[Tensor]:
    """Gradients of initial, inputs and shared, in this order; ``grads`` are those of outputs and last states."""
    problem = problem_of(*call)
    problem.check()
    count = len(problem.stacked)
    return problem.by_operand(backward(runner_of(problem), problem, kept, grads[:count], grads[count:]))


def gradient_shapes(
    grads: Sequence[Tensor],
    kept: Sequence[Tensor],
    initial: Sequence[Tensor],
    inputs: Sequence[Tensor],
    shared: Sequence[Tensor],
    *_: Any,
) -> list[Tensor]:
    """Empty gradients."""
    return [one.new_empty(one.shape) for one in (*initial, *inputs, *shared)]


def save(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    """Keep what ``pull`` needs: operands, and the states at the end of the output."""
    initial, given, shared, *ctx.settings = inputs
    ctx.counts = len(initial), len(given)
    ctx.needs = [one.requires_grad for one in (*initial, *given, *shared)]
    count = len(output) - len(initial)
    ctx.mark_non_differentiable(*output[count:])
    ctx.save_for_backward(*initial, *given, *shared, *output[count:])


def pull(ctx: Any, grads: Sequence[Tensor], operator: str = "row_loop_backward") -> tuple[Any, ...]:
    """The gradient, by the operator of that name."""
    count, width = ctx.counts
    saved = ctx.saved_tensors
    operands, kept = saved[: len(saved) - count], saved[len(saved) - count :]
    initial, inputs, shared = operands[:count], operands[count : count + width], operands[count + width :]
    grads = list(grads[: len(grads) - count])
    if torch.is_grad_enabled():  # the gradient is to be differentiated: through plain steps, by autograd
        groups = (initial, inputs, shared)
        problem = problem_of(*groups, *ctx.settings[:4])
        problem.check()
        found = differentiable_gradients(problem, grads, ctx.needs)
    else:
        found = getattr(torch.ops.itnet, operator)(grads, list(kept), initial, inputs, shared, *ctx.settings)
    # No axes is an empty list, which torch takes for one of tensors.
    none: list[Any] = [[] if isinstance(one, (list, tuple)) and not one else None for one in ctx.settings]
    return found[:count], found[count : count + width], found[count + width :], *none


def once(ctx: Any, *gradients: Any) -> Any:
    """The gradient of a gradient that was taken without a graph."""
    raise RuntimeError(
        "the gradient of a fused loop cannot be differentiated again\n  Remedy: itnet.lower(model, method='library')"
    )


CALL = "Tensor[] initial, Tensor[] inputs, Tensor[] shared, str program, int[] axes, int[] stacked, SymInt length"
LIBRARY.define(f"row_loop({CALL}) -> Tensor[]")
LIBRARY.define(f"row_loop_backward(Tensor[] grads, Tensor[] kept, {CALL}) -> Tensor[]")
for _name, _function, _fake, _slopes, _setup in (
    ("row_loop", row_loop, _shapes, pull, save),
    ("row_loop_backward", row_loop_backward, gradient_shapes, once, keep_nothing),
):
    register(LIBRARY, _name, outside_dynamo(_function), _fake, _slopes, _setup)
