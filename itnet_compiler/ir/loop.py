"""Family ``gated``, kernel ``Loop``: any recurrence, its step given as a program."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from .body import Body, Call, Progression, Ref, concrete
from .domain import Domain, Past
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work

__all__ = ["SHORT", "Loop", "Shape", "shortened"]

# Steps at which a loop is compared with its definition.
SHORT = 3

# Shape and kind (``float``, ``bool`` or ``long``) of an operand at the example; None for a number.
Shape = tuple[tuple[int, ...], str] | int | float | None


@dataclass(frozen=True)
class Loop(Kernel):
    """h_t = step(h_{t−1}, x_t; w) for t = 0, 1, … , where ``step`` is a program.

    Operands: ``initial``, the carried values before the first step; ``inputs``, whole tensors of which step t gets
    slice t along an axis; ``shared``, what every step gets. Returns a tuple: each of the body's outputs, stacked along
    its axis over the steps, then its finals, as they are after the last step.

    Attributes:
        body: One step.
        length: Number of steps; None: as many as ``inputs`` have slices.
        axes: Axis of time of each of ``inputs``.
        stacked: Axis of time of each output.
        shapes: Of the operands at the example, by role, for drawing others like them; of ``inputs`` at most ``SHORT``
            steps.
    """

    family: ClassVar[str] = "gated"
    value_map: ClassVar[str] = "what a step adds to the carried values"

    body: Body
    length: int | None
    axes: tuple[int, ...] = ()
    stacked: tuple[int, ...] = ()
    shapes: tuple[tuple[str, tuple[Shape, ...]], ...] = ()

    def properties(self, domain: Domain) -> frozenset[str]:
        return frozenset({"causal"})

    def evaluate(self, domain: Domain, **operands: Any) -> tuple[Any, ...]:
        """The loop itself."""
        carry, shared = tuple(operands["initial"]), tuple(operands["shared"])
        steps = [value.unbind(axis) for value, axis in zip(operands["inputs"], self.axes, strict=True)]
        kept: list[list[Tensor]] = [[] for _ in self.body.outputs]
        known: dict[str, Any] = {}
        length = self._steps(operands["inputs"])
        for step in range(length):
            given = tuple(values[step] for values in steps)
            known = {"carry": carry, "step": given, "shared": shared}
            known["local"] = self.body.run(step, carry, given, shared)
            for values, ref in zip(kept, self.body.outputs, strict=True):
                values.append(concrete(ref, known, step))
            carry = tuple(concrete(ref, known, step) for ref in self.body.carried)
        finals = [concrete(ref, known, length - 1) for ref in self.body.finals]
        stacks = [torch.stack(values, axis) for values, axis in zip(kept, self.stacked, strict=True)]
        return (*stacks, *finals)

    def details(self) -> list[str]:
        return self.body.lines()

    def describe(self) -> str:
        length = "" if self.length is None else f", length={self.length}"
        return f"{self.family}(loop of {len(self.body.calls)} operators{length}, carries={len(self.body.carried)})"

    def _steps(self, inputs: Sequence[Any]) -> int:
        return int(inputs[0].shape[self.axes[0]]) if self.length is None else self.length

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """Three steps; the sizes of what is not time are part of the program, so they stay."""
        draws: dict[str, Any] = {}
        for role, shapes in self.shapes:
            axes = self.axes if role == "inputs" else (None,) * len(shapes)
            draws[role] = [_draw(shortened(shape, axis)) for shape, axis in zip(shapes, axes, strict=True)]
        length = None if self.length is None else min(self.length, SHORT)
        return Sample(Spec(dataclasses.replace(self, length=length), domain, "loop", roles), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Operations of one step, counted operator by operator, times the steps; bytes of operands and outputs."""

        def like(value: Any) -> Any:
            return torch.empty(tuple(map(int, value.shape)), dtype=value.dtype, device="meta")

        given = pytree.tree_map_only(Tensor, like, dict(operands))
        steps = tuple(value.select(axis, 0) for value, axis in zip(given["inputs"], self.axes, strict=True))
        known: dict[str, Any] = {"carry": tuple(given["initial"]), "step": steps, "shared": tuple(given["shared"])}
        known["local"] = _on_meta(self.body).run(0, *known.values())
        flops = sum(
            _flops(call, concrete(call.args, known, 0), made)
            for call, made in zip(self.body.calls, known["local"], strict=True)
        )
        moved = [leaf for leaf in pytree.tree_leaves((dict(operands), outputs)) if isinstance(leaf, Tensor)]
        return Work(
            self._steps(operands["inputs"]) * flops, sum(int(leaf.numel()) * leaf.element_size() for leaf in moved)
        )

    @classmethod
    def samples(cls) -> list[Sample]:
        h, x, w = Ref("carry", 0), Ref("step", 0), Ref("shared", 0)
        first, second, third = (Ref("local", index) for index in range(3))
        elman = Body(
            (
                Call("aten.linear.default", (h, w)),
                Call("aten.add.Tensor", (first, x)),
                Call("aten.tanh.default", (second,)),
            ),
            carried=(third,),
            outputs=(third,),
            finals=(third,),
        )
        counted = Body(
            (Call("aten.mul.Tensor", (h, Progression(0.5, 0.25))), Call("aten.sin.default", (first,))),
            carried=(second,),
        )
        counted = Body(counted.calls, counted.carried, finals=(second,))
        return [
            *(_elman(cls, elman, *sizes) for sizes in ((7, 3, 5, 0), (1, 7, 1, 1), (63, 2, 3, 0), (4, 0, 2, 1))),
            cls(counted, 7)._with(initial=[Draw((3, 4))], inputs=[], shared=[]),
        ]

    def _with(self, **draws: Any) -> Sample:
        shapes = tuple((role, tuple((draw.shape, draw.kind) for draw in given)) for role, given in draws.items())
        kernel = Loop(self.body, self.length, self.axes, self.stacked, shapes)
        return Sample(Spec(kernel, Past(), "loop", tuple(draws)), draws)


def _elman(cls: type[Loop], body: Body, length: int, batch: int, units: int, axis: int) -> Sample:
    sequence = (batch, length, units) if axis else (length, batch, units)
    state, weight = Draw((batch, units)), Draw((units, units), deviation=units**-0.5)
    return cls(body, None, (axis,), (axis,))._with(initial=[state], inputs=[Draw(sequence)], shared=[weight])


def shortened(shape: Shape, axis: int | None) -> Shape:
    """A shape with at most ``SHORT`` steps along its axis of time; None for an operand that has none."""
    if not isinstance(shape, tuple) or axis is None:
        return shape
    sizes = list(shape[0])
    sizes[axis] = min(sizes[axis], SHORT)
    return tuple(sizes), shape[1]


def _draw(shape: Shape) -> Any:
    if not isinstance(shape, tuple):
        return shape
    # Matrices are drawn so that products stay of order 1 over the steps.
    deviation = shape[0][-1] ** -0.5 if len(shape[0]) > 1 and shape[0][-1] else 1.0
    return Draw(*shape, deviation)


# Operators whose operations are those of a product of matrices: result elements × twice the summed axis.
_PRODUCTS = {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "mv"}
_FREE = {
    *"view reshape select slice chunk split unbind getitem permute transpose unsqueeze squeeze expand t".split(),
    *"stack cat clone detach to contiguous".split(),
}


def _on_meta(body: Body) -> Body:
    """The body with the devices that it names replaced."""

    def moved(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(moved, value))
        return torch.device("meta") if isinstance(value, torch.device) else value

    calls = tuple(Call(call.target, moved(call.args), moved(call.kwargs)) for call in body.calls)
    return dataclasses.replace(body, calls=calls)


def _flops(call: Call, args: Sequence[Any], made: Any) -> int:
    size = sum(leaf.numel() for leaf in pytree.tree_leaves(made) if isinstance(leaf, Tensor))
    if call.name in _PRODUCTS:
        left = args[1] if call.name in ("addmm", "baddbmm") else args[0]
        return 2 * size * int(left.shape[-1])
    if call.name.endswith("_cell"):
        weights = [leaf for leaf in args[2:4] if isinstance(leaf, Tensor)]
        rows = math.prod(args[0].shape[:-1])
        return 2 * rows * sum(weight.numel() for weight in weights)
    return 0 if call.name in _FREE else size
