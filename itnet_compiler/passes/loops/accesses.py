"""What a step takes of a whole tensor: one slice along an axis, whose place changes evenly with the step."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...ir.body import Progression
from ..match import op_name

__all__ = ["Access", "access", "static"]

Emit = Callable[..., Node]
_END = torch.iinfo(torch.int64).max


def static(size: Any) -> int | None:
    """A size that is the same in every call of the graph, as a number."""
    known: int | None = size if isinstance(size, int) else size.node.maybe_as_int()
    return known


@dataclass(frozen=True)
class Access:
    """``source.select(axis, start + t·by)``, or ``width`` positions from there on that are kept as an axis.

    Attributes:
        source: The whole tensor.
        axis: Axis of time, not negative.
        start: Position at step 0, not negative.
        by: Positions from step to step, not 0.
        width: Positions taken; None where the axis is removed.
    """

    source: Node
    axis: int
    start: int
    by: int
    width: int | None = None

    def whole(self, emit: Emit, steps: int) -> tuple[Node, int]:
        """All steps as one tensor, made by ``emit(operator, *args)``, and the axis of time in it."""
        value, axis = self._positions(emit, self.source, steps), self.axis
        if self.by < 0:
            value = emit("aten.flip.default", value, [axis])
        if self.width is not None:
            value = emit("aten.unflatten.int", value, axis, [-1, self.width])
        return value, axis

    def _positions(self, emit: Emit, value: Node, steps: int) -> Node:
        """The positions that are taken, in ascending order."""
        step, last = abs(self.by), self.start + (steps - 1) * self.by
        low, width = min(self.start, last), self.width or 1
        high = max(self.start, last) + width
        size = value.meta["val"].shape[self.axis]
        if self.width is not None:
            step = 1
        if high == static(size):
            if low == 0 and step == 1:
                return value
            high = _END
        return emit("aten.slice.Tensor", value, self.axis, low, high, step)

    def write(self, emit: Emit, values: Node, steps: int) -> None:
        """Write ``values``, a step along axis 0 each, to where the steps would have written them."""
        if self.by < 0:
            values = emit("aten.flip.default", values, [0])
        if self.axis:
            values = emit("aten.movedim.int", values, 0, self.axis)
        if self.width is not None:
            values = emit("aten.flatten.using_ints", values, self.axis, self.axis + 1)
        emit("aten.copy_.default", self._positions(emit, self.source, steps), values)


def access(target: Any, args: tuple[Any, ...], steps: int) -> Access | str | None:
    """The access that an operator with a ``Progression`` among its arguments makes; text where it is none we know.

    None where there is no progression. The first argument is the node of the whole tensor, or of its pieces.
    """
    if not any(isinstance(value, Progression) for value in args):
        return None
    name = str(target) if isinstance(target, torch._ops.OpOverload) else "getitem"
    source, *rest = args
    if target is not operator.getitem and not isinstance(target, torch._ops.OpOverload):
        return "a number that changes from step to step goes into an operator on numbers"
    if not isinstance(source, Node):
        return None
    if name == "aten.select.int":
        return _select(source, rest[0], rest[1], steps)
    if name == "aten.slice.Tensor":
        filled: list[Any] = [*rest, *(0, None, None, 1)[len(rest) :]]
        return _slice(source, filled[0], filled[1], filled[2], filled[3], steps)
    if name == "aten.narrow.default" and isinstance(rest[1], Progression) and isinstance(rest[2], int):
        return _checked(source, rest[0], rest[1], rest[2], steps)
    if name == "getitem":
        return _piece(source, rest[0], steps)
    return None


def _select(source: Node, axis: int, index: Any, steps: int) -> Access | str:
    if not isinstance(index, Progression):
        return "the axis that is selected changes from step to step"
    return _checked(source, axis, index, None, steps)


def _slice(source: Node, axis: Any, start: Any, stop: Any, step: Any, steps: int) -> Access | str:
    size = static(source.meta["val"].shape[axis]) if isinstance(axis, int) else None
    if step != 1 or not isinstance(start, Progression):
        return "a slice grows from step to step"
    if isinstance(stop, Progression) and stop.by == start.by:
        return _checked(source, axis, start, int(stop.start - start.start), steps)
    # The last piece may be given without its end.
    width = abs(int(start.by))
    if stop == _END and size is not None and steps == 1:
        return _checked(source, axis, start, width, steps)
    return "a slice grows from step to step"


def _piece(pieces: Node, index: Any, steps: int) -> Access | str:
    """One of the results of ``unbind``, ``split`` or ``chunk``."""
    if not isinstance(index, Progression) or not pieces.args or not isinstance(pieces.args[0], Node):
        return "one of several results, another at each step"
    source, name = pieces.args[0], op_name(pieces)
    given: dict[Any, Any] = dict(enumerate(pieces.args)) | pieces.kwargs
    axis: int = given.get("dim", given.get(1 if name.startswith("aten.unbind") else 2, 0))
    if name == "aten.unbind.int":
        return _checked(source, axis, index, None, steps)
    parts = pieces.meta.get("val")
    if name.split(".")[1] in ("split", "chunk", "split_with_sizes", "tensor_split") and isinstance(
        parts, (list, tuple)
    ):
        widths = [static(part.shape[axis]) for part in parts]
        first, last = int(index.start), int(index.at(steps - 1))
        taken = widths[: max(first, last) + 1]
        if taken[0] is not None and all(width == taken[0] for width in taken):
            wide = Progression(first * taken[0], int(index.by) * taken[0])
            return _checked(source, axis, wide, taken[0], steps)
    return "the pieces of a tensor have different sizes"


def _checked(source: Node, axis: int, index: Progression, width: int | None, steps: int) -> Access | str:
    value = source.meta.get("val")
    if not isinstance(value, Tensor) or index.over is not None:
        return "what is taken at each step is no part of a tensor"
    axis = axis % value.dim()
    start, last, by = int(index.start), int(index.at(steps - 1)), int(index.by)
    if (start < 0) != (last < 0):
        return "an index runs past the end of an axis"
    if start < 0:
        size = static(value.shape[axis])
        if size is None:
            return "an index counts from the end of an axis of any size"
        start += size
    if width is not None and (width < 1 or (width > 1 and abs(by) != width)):
        return "the windows that the steps take overlap, or leave gaps"
    if width == 1 and abs(by) != 1:
        return "the windows that the steps take overlap, or leave gaps"
    return Access(source, axis, start, by, width)
