"""Both passes of a row loop by Newton's method, each step by step where that does not converge.

The gradient is that of the implicit function theorem: with the states known, the cotangents of the carried values obey
a linear recurrence with transposed Jacobians, from the last step to the first (DEER, arXiv:2309.12252, equation 7). The
reverse step of a row loop is that recurrence, so the same method solves it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...ir.pair.adjoint import RECORDED
from ...ir.pair.dense import run
from ...ir.pair.program import Program
from ...ir.row_reverse import reverse
from ...ir.row_tangent import Carried
from ...lowering.outcomes import Outcome, record
from ...settings import NEAR_MISSES, debug
from ..rows.drive import Runner, collect
from ..rows.problem import Problem, flat
from .solve import Solution, solve, window

__all__ = ["backward", "forward"]


def forward(
    runner: type[Runner], problem: Problem, tolerance: float
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs with their axes of time, the last carried values, and those before every step."""
    count = len(problem.initial)
    carried = tuple((f"h{place}", place) for place in range(count))
    states = [flat(one.unsqueeze(0)) for one in problem.initial]
    streams = {name: problem.stream(name) for name in problem.places if name[0] in "xr"}
    key = str(problem.program)
    found = _all_steps(runner, problem, problem.program, carried, streams, states, tolerance, key)
    outputs = problem.outputs()
    for target, axis, made in zip(outputs, problem.stacked, found.outputs[count:], strict=True):
        moved = target.movedim(axis, 0)
        moved.copy_(made.reshape(moved.shape))
    lasts = [
        made[-1].reshape(like.shape).clone() for made, like in zip(found.outputs[:count], problem.initial, strict=True)
    ]
    return outputs, lasts, list(found.before)


def backward(
    runner: type[Runner],
    problem: Problem,
    kept: Sequence[Tensor],
    grads: Sequence[Tensor],
    grad_lasts: Sequence[Tensor],
    tolerance: float,
) -> dict[str, Tensor]:
    """Gradients by the name of the input, as of ``rows.drive.backward``; ``kept`` are the states before every step."""
    count, plan = len(problem.initial), reverse(problem.program, len(problem.initial))
    streams = {name: problem.stream(name) for name in problem.places if name[0] in "xr"}
    streams |= {f"h{place}": one for place, one in enumerate(kept)}
    size = problem.length, problem.rows
    if plan.recorded:
        shared = {name: one.reshape(1, 1, *one.shape) for name, one in _shared(problem, plan.again).items()}
        made = run(plan.again, streams | shared, 2)[count:]
        streams |= {f"{RECORDED}_{place}": one.expand(*size, -1) for place, one in enumerate(made)}
    for seed, grad, axis in zip(plan.seeds, grads, problem.stacked, strict=True):
        streams[seed] = flat(grad.movedim(axis, 0))
    states = [flat(one.unsqueeze(0)) for one in grad_lasts]
    names = {item.name for item in plan.program.inputs}
    turned = {name: one.flip(0) for name, one in streams.items() if name in names}
    key = f"{problem.program}\nreverse"
    found = _all_steps(runner, problem, plan.program, plan.carried, turned, states, tolerance, key)
    sinks = [one.flip(0) for one in found.outputs[count:]]
    gradients: dict[str, Tensor] = {}
    collect(problem, plan, streams, sinks, gradients)
    gradients |= {name: sinks[place] for name, place in plan.inputs.items() if name[0] == "x"}
    return gradients | {f"h{place}": one[-1] for place, one in enumerate(found.outputs[:count])}


def _shared(problem: Problem, program: Program) -> dict[str, Tensor]:
    return {item.name: problem.operand(item.name) for item in program.inputs if item.name[0] == "w"}


def _all_steps(
    runner: type[Runner],
    problem: Problem,
    program: Program,
    carried: Carried,
    streams: Mapping[str, Tensor],
    states: Sequence[Tensor],
    tolerance: float,
    key: str,
) -> Solution:
    """Window after window; what does not converge there is run step by step."""
    shared, solutions = _shared(problem, program), []
    size, alone = window(problem.rows, sum(one.shape[-1] for one in states)), 0
    for first in range(0, problem.length, size):
        length = min(size, problem.length - first)
        part = {name: one[first : first + length] for name, one in streams.items()}
        found = solve(program, carried, part, shared, states, length, tolerance)
        if not found.converged:
            alone += length
            found = _one_by_one(runner, problem, program, carried, part, states, length, found)
        states = [found.outputs[place][-1:] for _, place in carried]
        solutions.append(found)
    worst = max(solutions, key=lambda each: (math.isnan(each.residual), each.residual))
    outcome = Outcome(problem.length, max(each.iterations for each in solutions), worst.residual, alone)
    record(key, outcome)
    if alone:
        debug(NEAR_MISSES, "newton: %s", outcome)
    if len(solutions) == 1:
        return solutions[0]
    before = [torch.cat(parts) for parts in zip(*(each.before for each in solutions), strict=True)]
    outputs = [torch.cat(parts) for parts in zip(*(each.outputs for each in solutions), strict=True)]
    return Solution(outcome.iterations, outcome.residual, tuple(before), tuple(outputs))


def _one_by_one(
    runner: type[Runner],
    problem: Problem,
    program: Program,
    carried: Carried,
    streams: Mapping[str, Tensor],
    states: Sequence[Tensor],
    length: int,
    found: Solution,
) -> Solution:
    """The same steps by a runner, with what was found about the iterations."""
    written = [states[0].new_empty((length, problem.rows, program.values[number].size)) for number in program.outputs]
    lasts = [torch.empty_like(one, memory_format=torch.contiguous_format) for one in states]
    starts = [one.contiguous() for one in states]
    steps = runner(problem, program, carried, tuple(range(len(written))))
    steps.run(dict(streams), written, starts, lasts, length=length)
    before = [torch.cat([one, written[place][:-1]]) for one, (_, place) in zip(starts, carried, strict=True)]
    return Solution(found.iterations, found.residual, tuple(before), tuple(written))
