"""Row loops in plain torch, one step at a time: right on every device and for every dtype."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...ir.pair.dense import run
from ...ir.pair.program import Program
from .problem import CHUNK, Problem, flat

__all__ = ["Plain", "differentiable_gradients"]


class Plain:
    """A ``Runner`` that calls torch for every primitive."""

    def __init__(
        self, problem: Problem, program: Program, carried: Sequence[tuple[str, int]], written: tuple[int, ...]
    ) -> None:
        self.program, self.carried, self.written, self.rows = program, tuple(carried), written, problem.rows
        names = [item.name for item in program.inputs]
        self.shared = {name: problem.operand(name).detach().unsqueeze(0) for name in names if name[0] == "w"}
        inside = {name for name, _ in carried}
        self.names = [name for name in names if name not in self.shared and name not in inside]
        self.like = problem.initial[0]

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
        """As ``Runner.run``."""
        carried = [state[0] for state in states]
        for step in range(length):
            for keep, state in zip(kept, carried, strict=False):
                if step % CHUNK == 0:
                    keep[step // CHUNK] = state
            place = length - 1 - step if backwards else step
            given = {name: streams[name][place].detach() for name in self.names}
            given |= {name: state for (name, _), state in zip(self.carried, carried, strict=True)}
            made = run(self.program, given | self.shared, 1)
            for number, target in zip(self.written, written, strict=True):
                target[place] = made[number]
            carried = [made[place].expand_as(state) for (_, place), state in zip(self.carried, carried, strict=True)]
        for last, state in zip(lasts, carried, strict=True):
            last[0] = state


def differentiable_gradients(problem: Problem, grads: Sequence[Tensor], needs: Sequence[bool]) -> list[Tensor | None]:
    """Gradients of initial, inputs and shared, as results of operators that autograd can differentiate again."""
    outputs, lasts = _traced(problem)
    pairs = [(out, grad) for out, grad in zip((*outputs, *lasts), grads, strict=True) if out.requires_grad]
    operands = (*problem.initial, *problem.inputs, *problem.shared)
    wanted = [one for one, need in zip(operands, needs, strict=True) if need]
    results, seeds = ([pair[side] for pair in pairs] for side in (0, 1))
    found = iter(torch.autograd.grad(results, wanted, seeds, create_graph=True, allow_unused=True))
    return [next(found) if need else None for need in needs]


def _traced(problem: Problem) -> tuple[list[Tensor], list[Tensor]]:
    """Outputs with their axes of time and last carried values, with the history that autograd needs."""
    carried = [flat(one.unsqueeze(0))[0] for one in problem.initial]
    shared = {name: problem.operand(name).unsqueeze(0) for name in problem.places if name[0] == "w"}
    streams = {name: problem.stream(name) for name in problem.places if name[0] in "xr"}
    kept: list[list[Tensor]] = [[] for _ in problem.stacked]
    for step in range(problem.length):
        given = {name: value[step] for name, value in streams.items()}
        given |= {name: carried[int(name[1:])] for name in problem.places if name[0] == "h"}
        made = [one.expand(problem.rows, *one.shape[1:]) for one in run(problem.program, given | shared, 1)]
        carried = made[: len(carried)]
        for values, value in zip(kept, made[len(carried) :], strict=True):
            values.append(value.reshape(*problem.lead, -1))
    stacks = [torch.stack(values, axis) for values, axis in zip(kept, problem.stacked, strict=True)]
    return stacks, [one.reshape(like.shape) for one, like in zip(carried, problem.initial, strict=True)]
