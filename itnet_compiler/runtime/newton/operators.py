"""The custom operators ``itnet::newton_loop`` and its backward: schema, shapes, gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ..registering import keep_nothing, outside_dynamo, register
from ..rows.operators import CALL, gradient_shapes, once, problem_of, pull, runner_of, save
from .drive import backward, forward

__all__ = ["LIBRARY"]

LIBRARY = torch.library.Library("itnet", "FRAGMENT")


def newton_loop(
    initial: Sequence[Tensor],
    inputs: Sequence[Tensor],
    shared: Sequence[Tensor],
    program: str,
    axes: Sequence[int],
    stacked: Sequence[int],
    length: int,
    tolerance: float,
) -> list[Tensor]:
    """All steps of a loop over rows at once, as near to the loop as ``tolerance`` says.

    Args:
        initial: As of ``row_loop``, and so up to ``length``, of which there is at least one.
        inputs: Likewise.
        shared: Likewise.
        program: Likewise.
        axes: Likewise.
        stacked: Likewise.
        length: Likewise.
        tolerance: What a state may differ from the step after the one before it, in units of the largest number that
            the row holds there (``Solution.residual``). Where that is not reached the steps are run one by one.

    Returns:
        What is kept of every step, stacked; the carried values after the last step; those before every step, (steps,
        rows, width), for the backward pass.
    """
    problem = problem_of(initial, inputs, shared, program, axes, stacked, length)
    problem.check()
    if length == 0:
        raise InputError("a loop without steps has no last one", remedy="itnet.lower(model, method='library')")
    outputs, lasts, kept = forward(runner_of(problem), problem, tolerance)
    return [*outputs, *lasts, *kept]


def _shapes(*call: Any) -> list[Tensor]:
    problem = problem_of(*call[:-1])
    return problem.results(problem.length)


def newton_loop_backward(grads: Sequence[Tensor], kept: Sequence[Tensor], *call: Any) -> list[Tensor]:
    """Gradients of initial, inputs and shared, in this order; ``grads`` are those of outputs and last states."""
    problem, tolerance = problem_of(*call[:-1]), call[-1]
    problem.check()
    count = len(problem.stacked)
    return problem.by_operand(backward(runner_of(problem), problem, kept, grads[:count], grads[count:], tolerance))


def _pull(ctx: Any, grads: Sequence[Tensor]) -> tuple[Any, ...]:
    return pull(ctx, grads, "newton_loop_backward")


# How often it iterates depends on the values, so that a recorded CUDA graph would be wrong.
_TAGS = (torch.Tag.cudagraph_unsafe,)
LIBRARY.define(f"newton_loop({CALL}, float tolerance) -> Tensor[]", tags=_TAGS)
LIBRARY.define(f"newton_loop_backward(Tensor[] grads, Tensor[] kept, {CALL}, float tolerance) -> Tensor[]", tags=_TAGS)
for _name, _function, _fake, _slopes, _setup in (
    ("newton_loop", newton_loop, _shapes, _pull, save),
    ("newton_loop_backward", newton_loop_backward, gradient_shapes, once, keep_nothing),
):
    register(LIBRARY, _name, outside_dynamo(_function), _fake, _slopes, _setup)
