"""One call of a row loop: operands by what the program calls them, rows flattened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...ir.pair.program import Program

__all__ = ["CHUNK", "Problem", "flat", "placed", "readable"]

# Steps between two states that a backward pass is given; those in between are computed again.
CHUNK = 64


@dataclass(frozen=True)
class Problem:
    """Operands of one call.

    Attributes:
        program: One step (``ir.row_step``).
        initial: Carried values before the first step, (*lead, width).
        inputs: Whole sequences, (*lead, width) with an axis of time.
        shared: What every step gets.
        axes: Axis of time of each of ``inputs``.
        stacked: Axis of time of each output.
        length: Number of steps; the inputs have as many.
    """

    program: Program
    initial: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    shared: tuple[Tensor, ...]
    axes: tuple[int, ...]
    stacked: tuple[int, ...]
    length: int

    def check(self) -> None:
        """Raise ``InputError`` where the operands do not fit the program."""
        for name, place in self.places.items():
            tensor, shape = self.operand(name), self.program.values[place].shape
            own = tuple(tensor.shape)
            if name[0] == "x":
                axis = self.axes[int(name[1:])] % tensor.dim()
                if own[axis] != self.length:
                    raise InputError(f"an input has {own[axis]} steps where the loop has {self.length}")
                own = own[:axis] + own[axis + 1 :]
            wanted = shape if name[0] == "w" else (*self.lead, *shape)
            if own != tuple(wanted):
                raise InputError(f"an operand of a step has shape {own}, the loop takes {tuple(wanted)}")

    @property
    def lead(self) -> torch.Size:
        """Axes of the rows."""
        return self.initial[0].shape[:-1]

    @cached_property
    def rows(self) -> int:
        """Number of rows."""
        return self.lead.numel()

    @cached_property
    def places(self) -> dict[str, int]:
        """Input name → number of the value."""
        return {item.name: item.number for item in self.program.inputs}

    @property
    def widths(self) -> tuple[int, ...]:
        """Of the carried values."""
        return tuple(one.shape[-1] for one in self.initial)

    @property
    def output_widths(self) -> tuple[int, ...]:
        """Of what is kept of every step."""
        return tuple(self.program.values[number].size for number in self.program.outputs[len(self.initial) :])

    def operand(self, name: str) -> Tensor:
        """A tensor by the name of the input."""
        groups = {"h": self.initial, "x": self.inputs, "r": self.shared, "w": self.shared}
        return groups[name[0]][int(name[1:])]

    def stream(self, name: str) -> Tensor:
        """A row operand as (steps, rows, width), steps repeated where it is the same at each."""
        tensor = self.operand(name)
        if name[0] == "x":
            tensor = tensor.movedim(self.axes[int(name[1:])], 0)
        else:
            tensor = tensor.expand(self.length, *tensor.shape)
        return flat(tensor)

    def by_operand(self, found: Mapping[str, Tensor]) -> list[Tensor]:
        """Gradients of initial, inputs and shared, in this order, from those by the names that the program has.

        Of x they are (steps, rows, width), of h and r (rows, width), of w as the operand; 0 where there is none.
        """
        results: list[Tensor] = []
        for letters, group in (("h", self.initial), ("x", self.inputs), ("rw", self.shared)):
            for place, tensor in enumerate(group):
                name = next((letter + str(place) for letter in letters if letter + str(place) in found), None)
                result = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
                if name is not None and name[0] == "x":
                    moved = result.movedim(self.axes[place], 0)
                    moved.copy_(found[name].view(moved.shape))
                elif name is not None:
                    result = found[name].reshape(tensor.shape).clone(memory_format=torch.contiguous_format)
                results.append(result)
        return results

    def results(self, kept: Any) -> list[Tensor]:
        """Empty tensors for all that a forward pass returns, with the states before so many steps."""
        lasts = [one.new_empty(one.shape) for one in self.initial]
        states = [one.new_empty((kept, self.rows, one.shape[-1])) for one in self.initial]
        return [*self.outputs(), *lasts, *states]

    def outputs(self) -> list[Tensor]:
        """Empty tensors for what is kept of every step, with the axis of time where it belongs."""
        return [
            self.initial[0].new_empty(placed(self.lead, width, self.length, axis))
            for width, axis in zip(self.output_widths, self.stacked, strict=True)
        ]


def placed(lead: Sequence[int], width: int, length: int, axis: int) -> tuple[int, ...]:
    """Shape of a stack of steps along ``axis``."""
    shape = [*lead, width]
    shape.insert(axis % (len(shape) + 1), length)
    return tuple(shape)


def flat(tensor: Tensor) -> Tensor:
    """(steps, *lead, width) as (steps, rows, width)."""
    return tensor.flatten(1, -2) if tensor.dim() > 2 else tensor.unsqueeze(1)


def readable(tensor: Tensor) -> Tensor:
    """The same numbers, without history, with the entries of a row side by side."""
    tensor = tensor.detach()
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
