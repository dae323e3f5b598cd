"""Gates of a recurrent cell: pre-activations that are affine in what is given and in what is carried.

    gate = Σ W x + Σ U h + Σ b,   each a slice of rows of some weight, however it was put together

Reads through the body of a core and on into the graph before it, since products with what is given are done there.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...ir.body import Ref
from ...ir.mode import mode_of
from ..operators import operator_name
from .accesses import static
from .core import Core

__all__ = ["Gate", "NotAGate", "Reader", "Rows"]

_END = torch.iinfo(torch.int64).max


class NotAGate(Exception):
    """A pre-activation is something else."""


@dataclass(frozen=True)
class Rows:
    """Rows ``start … start + count − 1`` of a matrix or vector, of a matrix columns likewise; ``sign`` times that.

    Attributes:
        node: The tensor.
        turned: Whether it is the transpose that is meant.
        columns: First column and their number; None for all.
    """

    node: Node
    start: int
    count: int
    turned: bool = False
    columns: tuple[int, int] | None = None
    sign: int = 1


@dataclass
class Gate:
    """One gate: weights of the input and of the state, and biases by the product that they belong to."""

    given: list[tuple[Node, int, Rows]] = field(default_factory=list)
    carried: list[Rows] = field(default_factory=list)
    given_bias: list[Rows | float] = field(default_factory=list)
    carried_bias: list[Rows | float] = field(default_factory=list)

    def negated(self) -> Gate:
        """The same with the other sign."""

        def turn(value: Any) -> Any:
            return replace(value, sign=-value.sign) if isinstance(value, Rows) else -value

        return Gate(
            [(node, axis, turn(rows)) for node, axis, rows in self.given],
            [turn(rows) for rows in self.carried],
            [turn(rows) for rows in self.given_bias],
            [turn(rows) for rows in self.carried_bias],
        )


# A value to look at: a reference of the body, or a graph node with the axis of time that it has.
@dataclass(frozen=True)
class _Timed:
    node: Node
    axis: int


Value = Any


def _timed(node: Node, axis: int) -> _Timed:
    """A node with its axis of time; one whose time was moved to the front is read where it was."""
    while axis == 0 and operator_name(node) == "movedim" and node.args[2] == 0 and isinstance(node.args[0], Node):
        node, axis = node.args[0], int(node.args[1])  # type: ignore[arg-type]
        if axis < 0:
            axis += node.meta["val"].dim()
    return _Timed(node, axis)


class Reader:
    """Reads the body of one core, of which carried value ``state`` feeds the gates."""

    def __init__(self, core: Core, state: int) -> None:
        self.core, self.state = core, state

    def call(self, value: Value) -> tuple[str, tuple[Any, ...]]:
        """Operator and arguments of a value; an empty name where it is none that can be looked into."""
        if isinstance(value, Ref) and value.kind == "local":
            call = self.core.body.calls[value.index]
            return ("", ()) if call.kwargs else (call.name, call.args)
        if isinstance(value, _Timed) and self._is_readable(value.node):
            name = "getitem" if value.node.target is operator.getitem else operator_name(value.node)
            first, *others = value.node.args
            rest: list[Any] = list(others)
            if name == "add":
                rest = [_timed(item, value.axis) if _is_computed(item) else item for item in rest]
            return name, (_timed(first, value.axis) if isinstance(first, Node) else first, *rest)
        return "", ()

    def _is_readable(self, node: Node) -> bool:
        """Whether a node before the loop is an operator that may as well be done by the layer."""
        return node.op == "call_function" and not node.kwargs and mode_of(node) == self.core.mode

    def given(self, value: Value) -> Value:
        """A step reference as the graph node behind it."""
        if isinstance(value, Ref) and value.kind == "step":
            return _timed(*self.core.inputs[value.index])
        return value

    def type(self, value: Value) -> Any:
        """Fake value, in one step of references, of all steps of nodes."""
        return self.core.types[value] if isinstance(value, Ref) else value.node.meta["val"]

    def width(self, value: Value) -> int:
        """Size of the last axis. Raises ``NotAGate`` where it is not known."""
        found = self.type(value)
        size = static(found.shape[-1]) if isinstance(found, Tensor) and found.dim() else None
        if size is None:
            raise NotAGate
        return size

    # ---- slices of the last axis

    def slice_of(self, value: Value) -> tuple[Value, int]:
        """What ``value`` is a slice of along the last axis, and from where on."""
        offset = 0
        while True:
            value = self.given(value)
            name, args = self.call(value)
            if name == "getitem" and isinstance(args[1], int):
                found = self._piece(args[0], args[1])
            elif name in ("slice", "narrow"):
                found = self._cut(name, args)
            else:
                return value, offset
            if found is None:
                return value, offset
            value, start = found
            offset += start

    def _last(self, value: Value, axis: Any) -> bool:
        rank = self.type(value).dim()
        return axis in (-1, rank - 1)

    def _piece(self, pieces: Value, index: int) -> tuple[Value, int] | None:
        name, args = self.call(pieces)
        if name not in ("chunk", "split", "split_with_sizes") or not self._last(
            args[0], args[2] if len(args) > 2 else 0
        ):
            return None
        parts = self.type(pieces)
        return args[0], sum(int(part.shape[-1]) for part in parts[:index])

    def _cut(self, name: str, args: tuple[Any, ...]) -> tuple[Value, int] | None:
        source, axis, start, *rest = args
        if name == "slice" and start in (0, None) and (not rest or rest[0] in (None, _END)) and len(rest) < 2:
            return source, 0  # all of it, of any axis
        if (
            not self._last(source, axis)
            or not isinstance(start, int)
            or (name == "slice" and len(rest) > 1 and rest[1] != 1)
        ):
            return None
        return source, start % self.width(source) if start < 0 else start

    # ---- affine forms

    def gate(self, value: Value, start: int = 0, count: int | None = None) -> Gate:
        """``count`` entries from ``start`` on of a pre-activation. Raises ``NotAGate``."""
        count = self.width(value) if count is None else count
        found = Gate()
        self._add(value, start, count, found)
        return found

    def _add(self, value: Value, start: int, count: int, found: Gate) -> None:
        if isinstance(value, (int, float)):
            found.given_bias.append(float(value))
            return
        value, offset = self.slice_of(value)
        start += offset
        if isinstance(value, Node) or (isinstance(value, Ref) and value.kind == "shared"):
            found.given_bias.append(self._vector(self._shared(value), start, count))
            return
        name, args = self.call(value)
        if name == "add":
            for part in args:
                self._add(part, start, count, found)
        elif name == "linear":
            self._product(args[0], args[1], False, start, count, found, args[2] if len(args) > 2 else None)
        elif name in ("matmul", "mm"):
            self._product(args[0], args[1], True, start, count, found)
        elif name == "addmm":
            self._product(args[1], args[2], True, start, count, found, args[0])
        else:
            raise NotAGate

    def _shared(self, value: Value) -> Node:
        if isinstance(value, Ref) and value.kind == "shared":
            return self.core.shared[value.index]
        node = value.node if isinstance(value, _Timed) else value
        if not isinstance(node, Node):
            raise NotAGate
        return node

    def _vector(self, node: Node, start: int, count: int) -> Rows:
        value = node.meta.get("val")
        if not isinstance(value, Tensor) or value.dim() != 1 or static(value.shape[0]) is None:
            raise NotAGate
        return Rows(node, start, count)

    def _product(
        self, left: Value, weight: Value, turned: bool, start: int, count: int, found: Gate, bias: Value = None
    ) -> None:
        matrix = self._shared(weight)
        shape = matrix.meta["val"].shape
        if len(shape) != 2 or any(static(size) is None for size in shape):
            raise NotAGate
        columns = 0
        name, args = self.call(left)
        parts = args[0] if name in ("cat", "concat") and isinstance(left, Ref) and self._joins(args) else (left,)
        for part in parts:
            width = self.width(part)
            rows = Rows(matrix, start, count, turned, None if len(parts) == 1 else (columns, width))
            columns += width
            if isinstance(part, Ref) and part.kind == "carry":
                if part.index != self.state:
                    raise NotAGate
                found.carried.append(rows)
            else:
                given = self.given(part)
                if not isinstance(given, _Timed):
                    raise NotAGate
                found.given.append((given.node, given.axis, rows))
        if bias is not None:
            alone = len(parts) == 1 and isinstance(parts[0], Ref) and parts[0].kind == "carry"
            (found.carried_bias if alone else found.given_bias).append(self._vector(self._shared(bias), start, count))

    def _joins(self, args: tuple[Any, ...]) -> bool:
        return len(args) > 1 and all(self._last(part, args[1]) for part in args[0])


def _is_computed(value: Any) -> bool:
    return isinstance(value, Node) and value.op != "get_attr"
