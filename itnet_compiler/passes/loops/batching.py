"""Operators of one step applied to all steps at once: each rule gives the call for operands with a leading time axis.

A rule answers for one operator: given the call, and the rank in one step of every operand that has the time axis, it
returns the call to make (whose arguments may be ``Lifted`` operands, or calls themselves), or None where it cannot be.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...ir.body import Call, Progression, Ref, function_named, refs_of
from ..operators import POINTWISE

__all__ = ["Lifted", "Types", "batched", "counts_steps"]

Types = Callable[[Ref], Any]


@dataclass(frozen=True)
class Lifted:
    """An operand with axes of size 1 behind the time axis, so that a step of it has ``rank`` axes."""

    ref: Ref
    rank: int


@dataclass(frozen=True)
class _Step:
    """What a rule is asked about.

    Attributes:
        call: The operator in one step.
        types: Value (fake tensor, tuple of them, number) of a reference in one step.
        timed: Whether a reference has the time axis.
        steps: Number of steps.
    """

    call: Call
    types: Types
    timed: Callable[[Ref], bool]
    steps: int

    def rank(self, value: Any) -> int:
        """Axes of an operand in one step; 0 for a number."""
        found = self.types(value) if isinstance(value, Ref) else value
        return found.dim() if isinstance(found, Tensor) else 0

    def is_timed(self, value: Any) -> bool:
        return isinstance(value, Ref) and self.timed(value)

    def with_args(self, *args: Any, target: str = "") -> Call:
        return Call(target or self.call.target, args, self.call.kwargs)

    def alone(self) -> bool:
        """Whether the first operand is the only one with the time axis."""
        first, *rest = self.call.args
        return self.is_timed(first) and not any(self.timed(ref) for ref in refs_of(tuple(rest)))


Rule = Callable[[_Step], Call | None]


def batched(call: Call, types: Types, timed: Callable[[Ref], bool], steps: int) -> Call | None:
    """The call that does ``call`` for all steps at once, or None where no rule knows how."""
    if not isinstance(call.target, str):
        return None  # what is the same for all steps at once forward need not be so backward
    given = (*call.args, *(value for _, value in call.kwargs))
    if any(_holds_progression(value) for value in given):
        return _compared(_Step(call, types, timed, steps)) if counts_steps(call) else None
    if any(timed(ref) for ref in refs_of(tuple(value for _, value in call.kwargs))):
        return None
    if call.target != "getitem":
        function = function_named(call.target)
        if function._schema.is_mutable or torch.Tag.nondeterministic_seeded in function.tags:  # type: ignore[attr-defined]
            return None
    rule = _RULES.get(call.name) or (_pointwise if call.name in _ELEMENTWISE else None)
    return None if rule is None else rule(_Step(call, types, timed, steps))


def _holds_progression(value: Any) -> bool:
    if isinstance(value, tuple):
        return any(_holds_progression(item) for item in value)
    return isinstance(value, Progression)


_COMPARISONS = frozenset(f"aten.{name}.Scalar" for name in ("lt", "le", "gt", "ge", "eq", "ne"))


def counts_steps(call: Call) -> bool:
    """Whether a call compares a tensor with the number of the step (``t < lengths``): whole numbers, so it is exact."""
    if call.target not in _COMPARISONS or call.kwargs or not isinstance(call.args[1], Progression):
        return False
    number = call.args[1]
    return (
        isinstance(call.args[0], Ref) and number.over is None and all(type(n) is int for n in (number.start, number.by))
    )


def _compared(step: _Step) -> Call | None:
    value, number = step.call.args
    found = step.types(value)
    if not isinstance(found, Tensor) or found.dtype not in (torch.int32, torch.int64) or number.by == 0:
        return None
    bounds = number.start, number.start + step.steps * number.by, number.by
    each = Call("aten.arange.start_step", bounds, (("device", found.device),))
    column = Call("aten.view.default", (each, (-1, *(1,) * found.dim())))
    return Call(step.call.target.replace("Scalar", "Tensor"), (value, column))


# Pointwise in name, but an argument is no tensor of values, there are several results, or an axis has a meaning.
_ELEMENTWISE = POINTWISE - set("prelu _prelu_kernel rrelu rrelu_with_noise isin bucketize frexp copy fill zero".split())


def _pointwise(step: _Step) -> Call | None:
    """Operands broadcast from the last axis, so those of lower rank get axes of size 1 behind that of time."""
    rank = max(step.rank(value) for value in step.call.args)
    return step.with_args(*(_lift(step, value, rank) for value in step.call.args))


def _lift(step: _Step, value: Any, rank: int) -> Any:
    return Lifted(value, rank) if step.is_timed(value) and step.rank(value) < rank else value


def _same(step: _Step) -> Call | None:
    """Layers over the last axis: the others are positions already."""
    return step.call if step.alone() and step.rank(step.call.args[0]) else None


def _look_up(step: _Step) -> Call | None:
    return step.call if not step.is_timed(step.call.args[0]) else None


def _product(step: _Step) -> Call | None:
    """Matrices are in the last two axes; leading ones broadcast."""
    left, right = step.call.args[:2]
    ranks = step.rank(left), step.rank(right)
    if min(ranks) >= 2:
        rank = max(ranks)
        return Call("aten.matmul.default", (_lift(step, left, rank), _lift(step, right, rank)))
    # Rows times a matrix or a vector that all steps share.
    if step.is_timed(left) and not step.is_timed(right) and ranks[0] >= 1 and ranks[1] in (1, 2):
        return Call("aten.matmul.default", (left, right))
    return _of_vectors(step, _VECTORS[ranks]) if ranks in _VECTORS else None


# Products in which one factor is a vector, by the ranks of both.
_VECTORS = {(1, 1): "k,k->", (1, 2): "k,kn->n", (2, 1): "mk,k->m"}


def _of_vectors(step: _Step, equation: str) -> Call | None:
    if len(step.call.args) != 2 or step.call.kwargs:
        return None
    written = Call("aten.einsum.default", (equation, step.call.args))
    return _einsum(_Step(written, step.types, step.timed, step.steps))


def _outer(step: _Step) -> Call | None:
    return _of_vectors(step, "m,n->mn")


def _added_product(step: _Step) -> Call | None:
    if step.call.kwargs or step.is_timed(step.call.args[0]):
        return None
    product = _product(_Step(Call("aten.matmul.default", step.call.args[1:3]), step.types, step.timed, step.steps))
    return None if product is None else Call("aten.add.Tensor", (product, step.call.args[0]))


def _einsum(step: _Step) -> Call | None:
    equation, operands = step.call.args[:2]
    sources, arrow, result = equation.replace(" ", "").partition("->")
    free = [letter for letter in string.ascii_letters if letter not in equation]
    if not arrow or "." in equation or not free or len(step.call.args) > 2:
        return None
    labels = sources.split(",")
    marked = [free[0] * step.is_timed(value) + text for text, value in zip(labels, operands, strict=True)]
    return step.with_args(f"{','.join(marked)}->{free[0]}{result}", operands)


def _shift(axis: int) -> int:
    """An axis of one step as one of all; those that count from the end stay."""
    return axis + 1 if axis >= 0 else axis


def _axis_at(*places: int, default: int | None = None) -> Rule:
    """Operators with an axis (or a list of axes) at ``places`` of their arguments."""

    def rule(step: _Step) -> Call | None:
        args = list(step.call.args)
        if not step.alone():
            return None
        for place in places:
            if place >= len(args):
                if default is None:
                    return None
                args.append(default)
            value = args[place]
            if isinstance(value, tuple) and value and all(isinstance(axis, int) for axis in value):
                args[place] = tuple(_shift(axis) for axis in value)
            elif isinstance(value, int):
                args[place] = _shift(value)
            else:
                return None
        if any(name == "dim" for name, _ in step.call.kwargs):
            return None
        return step.with_args(*args)

    return rule


def _permute(step: _Step) -> Call | None:
    value, order = step.call.args
    return step.with_args(value, (0, *(axis % step.rank(value) + 1 for axis in order)))


def _transposed(step: _Step) -> Call | None:
    return (
        step.with_args(step.call.args[0], 1, 2, target="aten.transpose.int")
        if step.rank(step.call.args[0]) == 2
        else None
    )


def _joined(step: _Step) -> Call | None:
    """All the tensors that are joined must have the time axis."""
    tensors, *rest = step.call.args
    if not all(step.is_timed(value) for value in tensors) or step.call.kwargs:
        return None
    return step.with_args(tensors, _shift(rest[0] if rest else 0))


def _resized(step: _Step) -> Call | None:
    value, sizes, *rest = step.call.args
    if not step.alone() or rest or step.call.kwargs:
        return None
    if step.call.name == "expand":
        if not isinstance(step.steps, int):
            return None
        return step.with_args(_lift(step, value, len(sizes)), (step.steps, *sizes))
    known = isinstance(step.steps, int) or not any(isinstance(size, int) and size == -1 for size in sizes)
    steps = step.steps if isinstance(step.steps, int) else -1
    return step.with_args(value, (steps, *sizes), target="aten.reshape.default") if known else None


def _flattened(step: _Step) -> Call | None:
    value, *axes = step.call.args
    start, end = axes[0] if axes else 0, axes[1] if len(axes) > 1 else -1
    return step.with_args(value, _shift(start), _shift(end)) if step.rank(value) else None


def _total(step: _Step) -> Call | None:
    """A sum or mean over everything of one step."""
    value, rank = step.call.args[0], step.rank(step.call.args[0])
    if len(step.call.args) > 1 or not rank:
        return None
    overload = "dim_IntList" if step.call.name == "sum" else "dim"
    return step.with_args(value, tuple(range(1, rank + 1)), target=f"aten.{step.call.name}.{overload}")


def _reduction(step: _Step) -> Call | None:
    return _total(step) if str(step.call.target).endswith(".default") else _axis_at(1)(step)


def _piece(step: _Step) -> Call | None:
    """One of several results."""
    return step.call if step.is_timed(step.call.args[0]) else None


_FIRST_AXIS, _SECOND_AXIS = _axis_at(1), _axis_at(2, default=0)
_RULES: dict[str, Rule] = {
    **dict.fromkeys("linear layer_norm rms_norm".split(), _same),
    **dict.fromkeys("matmul mm bmm mv dot".split(), _product),
    **dict.fromkeys("outer ger".split(), _outer),
    **dict.fromkeys(
        "unsqueeze squeeze select slice narrow amax amin logsumexp softmax _softmax log_softmax _log_softmax glu cumsum"
        " cumprod flip unflatten index_select unbind".split(),
        _FIRST_AXIS,
    ),
    **dict.fromkeys("chunk split split_with_sizes unsafe_chunk".split(), _SECOND_AXIS),
    **dict.fromkeys("sum mean".split(), _reduction),
    **dict.fromkeys("cat concat stack".split(), _joined),
    **dict.fromkeys("view reshape expand".split(), _resized),
    "transpose": _axis_at(1, 2),
    "permute": _permute,
    "t": _transposed,
    "flatten": _flattened,
    "addmm": _added_product,
    "einsum": _einsum,
    "embedding": _look_up,
    "getitem": _piece,
}
