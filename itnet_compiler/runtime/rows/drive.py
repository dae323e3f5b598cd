"""Both passes of a row loop, whatever runs the steps: machine code (``native``) or plain torch (``plain``)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from ...ir.pair.adjoint import RECORDED
from ...ir.pair.program import Program
from ...ir.row_reverse import Reverse, reverse
from .problem import CHUNK, Problem, flat

__all__ = ["Runner", "backward", "collect", "forward"]


class Runner(Protocol):
    """One program with the weights of one problem.

    Made of the problem, the program, name of the input and place of the output of each carried value, and the places
    of the outputs that are written at every step.
    """

    def __init__(
        self, problem: Problem, program: Program, carried: Sequence[tuple[str, int]], written: tuple[int, ...]
    ) -> None: ...

    def run(
        self,
        streams: dict[str, Tensor],
        written: Sequence[Tensor],
        states: Sequence[Tensor],
        lasts: Sequence[Tensor],
        kept: Sequence[Tensor] = (),
        *,
        length: int,
        backwards: bool = False,
    ) -> None:
        """``length`` steps from ``states`` to ``lasts``, each (1, rows, width).

        Streams, and what is written, are (steps, rows, width), gone through from their end where ``backwards``;
        ``kept`` (chunks, rows, width) gets the states before every ``CHUNK`` steps.
        """


def forward(runner: type[Runner], problem: Problem) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Outputs with their axes of time, the last carried values, and the states before steps 0, 64, 128 …"""
    outputs = problem.outputs()
    chunks = math.ceil(problem.length / CHUNK)
    kept = [one.new_empty((chunks, problem.rows, one.shape[-1])) for one in problem.initial]
    states = [flat(one.detach().unsqueeze(0)).contiguous() for one in problem.initial]
    lasts = [torch.empty_like(one) for one in states]
    targets = [one.movedim(axis, 0) for one, axis in zip(outputs, problem.stacked, strict=True)]
    views = [_flat_view(one) for one in targets]
    streams = {name: problem.stream(name) for name in problem.places if name[0] in "xr"}
    carried = tuple((f"h{place}", place) for place in range(len(states)))
    written = tuple(range(len(states), len(states) + len(outputs)))
    runner(problem, problem.program, carried, written).run(streams, views, states, lasts, kept, length=problem.length)
    for target, view in zip(targets, views, strict=True):
        if view.data_ptr() != target.data_ptr():
            target.copy_(view.view(target.shape))
    return outputs, [one.view(like.shape) for one, like in zip(lasts, problem.initial, strict=True)], kept


def backward(
    runner: type[Runner],
    problem: Problem,
    kept: Sequence[Tensor],
    grads: Sequence[Tensor],
    grad_lasts: Sequence[Tensor],
) -> dict[str, Tensor]:
    """Gradients by the name of the input: of x (steps, rows, width), of h and r (rows, width), of w as the operand.

    Chunk by chunk from the last one, the steps are run again from the state that was kept, then in reverse. ``grads``
    are those of the outputs. An input that no gradient reaches is not among the results.
    """
    count, plan = len(problem.initial), reverse(problem.program, len(problem.initial))
    again = runner(
        problem, plan.again, tuple((f"h{i}", i) for i in range(count)), tuple(range(len(plan.again.outputs)))
    )
    back = runner(problem, plan.program, plan.carried, tuple(range(count, len(plan.program.outputs))))
    whole = {name: problem.stream(name) for name in problem.places if name[0] in "xr"}
    for seed, grad, axis in zip(plan.seeds, grads, problem.stacked, strict=True):
        whole[seed] = flat(grad.detach().movedim(axis, 0))
    steps = min(CHUNK, problem.length)
    before = [keep.new_empty((steps + 1, *keep.shape[1:])) for keep in kept]
    recorded = [kept[0].new_empty((steps, problem.rows, width)) for width in plan.recorded]
    long = {place for name, place in plan.inputs.items() if name[0] == "x"}
    sinks = [
        kept[0].new_empty((problem.length if place in long else steps, problem.rows, width))
        for place, width in enumerate(plan.sinks)
    ]
    carried = [flat(one.detach().unsqueeze(0)).contiguous() for one in grad_lasts]
    found: dict[str, Tensor] = {}
    for first in reversed(range(0, problem.length, CHUNK)):
        size = min(CHUNK, problem.length - first)
        streams = {name: tensor[first : first + size] for name, tensor in whole.items()}
        starts = [keep[first // CHUNK].unsqueeze(0) for keep in kept]
        for state, start in zip(before, starts, strict=True):
            state[0] = start[0]
        made = [*(state[1 : size + 1] for state in before), *(one[:size] for one in recorded)]
        again.run(streams, made, starts, [torch.empty_like(one) for one in starts], length=size)
        streams |= {f"h{place}": state[:size] for place, state in enumerate(before)}
        streams |= {f"{RECORDED}_{place}": one[:size] for place, one in enumerate(recorded)}
        parts = [one[first : first + size] if place in long else one[:size] for place, one in enumerate(sinks)]
        later = [torch.empty_like(one) for one in carried]
        back.run(streams, parts, carried, later, length=size, backwards=True)
        carried = later
        collect(problem, plan, streams, parts, found)
    found |= {name: sinks[place] for name, place in plan.inputs.items() if name[0] == "x"}
    return found | {f"h{place}": one[0] for place, one in enumerate(carried)}


def collect(
    problem: Problem, plan: Reverse, streams: dict[str, Tensor], parts: Sequence[Tensor], found: dict[str, Tensor]
) -> None:
    """Add what a chunk gives to what all steps share."""
    for name, place in plan.inputs.items():
        if name[0] in "wr":
            part = parts[place].sum((0, 1) if name[0] == "w" else 0)
            part = part.reshape(problem.operand(name).shape) if name[0] == "w" else part
            found[name] = found[name] + part if name in found else part
    for name, *sides in plan.products:
        left, right = (streams[side] if isinstance(side, str) else parts[side] for side in sides)
        if name not in found:
            found[name] = torch.zeros_like(problem.operand(name), memory_format=torch.contiguous_format)
        found[name].addmm_(left.flatten(0, 1).t(), right.flatten(0, 1))


def _flat_view(tensor: Tensor) -> Tensor:
    """(steps, rows, width) in the same memory where the rows are evenly spaced, else in some of its own."""
    try:
        return tensor.view(tensor.shape[0], -1, tensor.shape[-1]) if tensor.stride(-1) == 1 else _own(tensor)
    except RuntimeError:
        return _own(tensor)


def _own(tensor: Tensor) -> Tensor:
    return flat(tensor.new_empty(tensor.shape))
