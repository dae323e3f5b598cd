"""All steps of a row loop at once, by Newton's method for the whole sequence of states.

The states h_1 … h_T are the root of h_t − f(h_{t−1}, x_t). An iteration evaluates f and its Jacobians J_t at all steps
together, r_t = f(h_{t−1}, x_t) − h_t, and adds the solution of δ_t = J_t δ_{t−1} + r_t (DEER, arXiv:2309.12252,
equation 5). After k iterations the first k states are exact, whatever stands for J_t; for wide states only its entries
unit by unit do (quasi-DEER, arXiv:2407.19115, section 3.2). Where an iterate overflows, the last one before it is gone
on from, with Jacobians scaled to a norm of at most 1 from then on, as they are in the second half of the iterations;
this takes the place of the trust region of ELK (ibid., section 3.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir.pair.dense import run
from ...ir.pair.program import Program
from ...ir.row_tangent import TANGENT, Carried, directional, unitwise, with_diagonals
from .affine import block_scan, diagonal_scan, matrix_scan

__all__ = ["Solution", "iterations_allowed", "solve", "window"]

# Numbers in the states of one row up to which Jacobians are whole.
_WHOLE_STATES = 16
# Numbers in all states, or whole Jacobians, that are solved for together, where that leaves as many steps.
_NUMBERS, _LEAST_STEPS = 2**22, 64

# What solves δ_t = J_t δ_{t−1} + r_t, given r for each carried value and whether Jacobians are scaled.
System = Callable[[Sequence[Tensor], bool], list[Tensor]]


@dataclass(frozen=True)
class Solution:
    """What Newton's method found.

    Attributes:
        iterations: How many were made.
        residual: Largest |f(h_{t−1}, x_t) − h_t| at the last one, in units of the largest number that the row holds in
            that carried value before or after the step (but at least ε times the largest until then, ε that of the
            dtype).
        before: Carried values before each step, (steps, rows, width); empty where it did not converge.
        outputs: All outputs of the program at each step, likewise.
    """

    iterations: int
    residual: float
    before: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()

    @property
    def converged(self) -> bool:
        """Whether the residual is as small as asked."""
        return bool(self.outputs)


def iterations_allowed(length: int) -> int:
    """As many as leave a loop of ``length`` steps that does not converge little slower than step by step."""
    return min(length, 8 + length // 8) + 1


def window(rows: int, states: int) -> int:
    """Steps to solve for together, so that memory is bounded; ``states`` numbers are carried by each row."""
    each = rows * states * (states if states <= _WHOLE_STATES else 1)
    return max(_LEAST_STEPS, _NUMBERS // max(1, each))


def solve(
    program: Program,
    carried: Carried,
    streams: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    states: Sequence[Tensor],
    length: int,
    tolerance: float,
) -> Solution:
    """Run a program for all steps.

    Args:
        program: One step.
        carried: Input name and output place of each carried value.
        streams: What each step is given, by input name, (steps, rows, width).
        shared: Vectors and matrices of all rows and steps, by input name.
        states: Carried values before the first step, (1, rows, width); without an entry there is nothing to solve.
        length: Number of steps, at least 1.
        tolerance: Largest residual.
    """
    rows = states[0].shape[1]
    if not any(one.numel() for one in states):
        return Solution(0, 0.0)
    evaluate = _evaluation(program, carried, streams, shared, length * rows, sum(one.shape[-1] for one in states))
    iterate = [one.expand(length, -1, -1) for one in states]
    limit, scaled, error = iterations_allowed(length), False, math.inf
    finite = iterate
    for iteration in range(limit):
        before = [torch.cat([start, each[:-1]]) for start, each in zip(states, iterate, strict=True)]
        outputs, system = evaluate(before)
        outputs = [one.expand(length, rows, -1) for one in outputs]
        after = [outputs[place] for _, place in carried]
        residuals = [new - old for new, old in zip(after, iterate, strict=True)]
        error = _relative(residuals, before, after)
        if error <= tolerance:
            return Solution(iteration, error, tuple(before), tuple(outputs))
        if math.isfinite(error):
            finite = iterate
        elif scaled or iteration == 0:
            break
        else:  # the next one starts where this one did
            scaled, iterate = True, finite
            continue
        scaled = scaled or iteration >= limit // 2
        change = system(residuals, scaled)
        iterate = [old + step for old, step in zip(iterate, change, strict=True)]
    return Solution(iteration, error)


def _relative(residuals: Sequence[Tensor], before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The largest residual in the units of ``Solution.residual``; NaN or infinite where a state is."""
    worst = []
    for found, old, new in zip(residuals, before, after, strict=True):
        if found.shape[-1]:
            size = torch.maximum(old.abs().amax(-1), new.abs().amax(-1))
            size = torch.maximum(size, size.cummax(0).values * torch.finfo(size.dtype).eps)
            largest = found.abs().amax(-1)
            worst.append(torch.where(largest == 0, largest, largest / size).max())
    return float(torch.stack(worst).max().item())


def _evaluation(
    program: Program,
    carried: Carried,
    streams: Mapping[str, Tensor],
    shared: Mapping[str, Tensor],
    places: int,
    states: int,
) -> Callable[[Sequence[Tensor]], tuple[list[Tensor], System]]:
    whole = states <= _WHOLE_STATES and places * states * states <= _NUMBERS
    return (_whole if whole else _by_units)(program, carried, streams, shared)


def _whole(
    program: Program, carried: Carried, streams: Mapping[str, Tensor], shared: Mapping[str, Tensor]
) -> Callable[[Sequence[Tensor]], tuple[list[Tensor], System]]:
    tangent = directional(program, carried)
    names = {item.name for item in tangent.inputs}
    fixed = {name: one.unsqueeze(0) for name, one in streams.items() if name in names}
    fixed |= {name: one.reshape(1, 1, 1, *one.shape) for name, one in shared.items() if name in names}

    def evaluate(before: Sequence[Tensor]) -> tuple[list[Tensor], System]:
        widths = [one.shape[-1] for one in before]
        total = sum(widths)
        eye = torch.eye(total, dtype=before[0].dtype, device=before[0].device)
        given = dict(fixed)
        for place, ((name, _), state, unit) in enumerate(zip(carried, before, eye.split(widths, 1), strict=True)):
            given[name], given[f"{TANGENT}_{place}"] = state.unsqueeze(0), unit[:, None, None]
        made = run(tangent, given, 3)
        count, size = len(program.outputs), (total, *before[0].shape[:2])
        columns = torch.cat([one.expand(*size, -1) for one in made[count:]], -1)  # (of, step, row, after)

        def system(residuals: Sequence[Tensor], scaled: bool) -> list[Tensor]:
            jacobians = columns.permute(1, 2, 3, 0)
            if scaled:
                jacobians = jacobians / jacobians.abs().sum(-1).amax(-1).clamp_min(1.0)[..., None, None]
            return list(matrix_scan(jacobians, torch.cat(list(residuals), -1)).split(widths, -1))

        return [one.squeeze(0) for one in made[:count]], system

    return evaluate


def _by_units(
    program: Program, carried: Carried, streams: Mapping[str, Tensor], shared: Mapping[str, Tensor]
) -> Callable[[Sequence[Tensor]], tuple[list[Tensor], System]]:
    found = unitwise(program, carried)
    names = {item.name for item in found.program.inputs}
    fixed = {name: one for name, one in streams.items() if name in names}
    everything = with_diagonals(found, shared)
    fixed |= {name: one.reshape(1, 1, *one.shape) for name, one in everything.items() if name in names}

    def evaluate(before: Sequence[Tensor]) -> tuple[list[Tensor], System]:
        given = fixed | {name: state for (name, _), state in zip(carried, before, strict=True)}
        made, count = run(found.program, given, 2), len(program.outputs)
        entries = dict(zip(found.entries, made[count:], strict=True))

        def system(residuals: Sequence[Tensor], scaled: bool) -> list[Tensor]:
            return _solved(entries, found.groups, residuals, scaled)

        return made[:count], system

    return evaluate


def _solved(
    entries: Mapping[tuple[int, int], Tensor],
    groups: Sequence[Sequence[int]],
    residuals: Sequence[Tensor],
    scaled: bool,
) -> list[Tensor]:
    """The recurrence, group after group, a block of each group for each unit."""
    change: dict[int, Tensor] = {}
    for group in groups:
        offsets = []
        for row in group:
            offset = residuals[row]
            for column, earlier in change.items():
                if (row, column) in entries:
                    factor = entries[row, column].expand_as(offset)
                    offset = torch.cat([offset[:1], torch.addcmul(offset[1:], factor[1:], earlier[:-1])])
            offsets.append(offset)
        change |= zip(group, _solved_together(entries, group, offsets, scaled), strict=True)
    return [change[place] for place in range(len(residuals))]


def _solved_together(
    entries: Mapping[tuple[int, int], Tensor], group: Sequence[int], offsets: Sequence[Tensor], scaled: bool
) -> Sequence[Tensor]:
    like = offsets[0]
    if len(group) == 1:
        own = entries.get((group[0], group[0]))
        if own is None:
            return offsets
        own = own.expand_as(like)
        return [diagonal_scan(own.clamp(-1.0, 1.0) if scaled else own, like)]
    none = like.new_zeros(())
    blocks = [[entries.get((row, column), none).expand_as(like) for column in group] for row in group]
    wide = torch.stack([torch.stack(line, 1) for line in blocks], 1)
    if scaled:
        wide = wide / wide.abs().sum(2).amax(1).clamp_min(1.0)[:, None, None]
    return block_scan(wide, torch.stack(list(offsets), 1)).unbind(1)
