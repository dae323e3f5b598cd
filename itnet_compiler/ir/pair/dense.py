"""Pair programs in plain torch: every value of every pair at once, or of a tile of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from .primitives import ELEMENTWISE
from .program import Program, Value

__all__ = ["run"]


def run(program: Program, inputs: Mapping[str, Tensor], lead: int) -> list[Tensor]:
    """Evaluate a program for many pairs.

    Args:
        program: What to evaluate.
        inputs: By name: tensors of ``lead`` axes that broadcast against each other (batch, query, source …), then the
            input's own shape. A shared input has leading axes of size 1.
        lead: Number of leading axes.

    Returns:
        The outputs: leading axes (of size 1 where a value does not depend on them), then the value's shape.
    """
    known: dict[int, Tensor] = {}
    like = next(iter(inputs.values()), None)
    for number, value in enumerate(program.values):
        if value.op == "input":
            known[number] = inputs[str(value.attrs[0])]
        elif value.op == "constant":
            constant = torch.tensor(value.attrs[0]) if like is None else like.new_tensor(value.attrs[0])
            known[number] = constant.reshape([1] * lead)
        else:
            result = _apply(value, [known[arg] for arg in value.args], lead)
            known[number] = result.to(like.dtype) if value.op == "real" and like is not None else result
        for dead in program.dying[number]:
            del known[dead]
    return [known[output] for output in program.outputs]


def _apply(value: Value, args: Sequence[Tensor], lead: int) -> Tensor:
    if value.op in ELEMENTWISE:
        return ELEMENTWISE[value.op].torch(*(_with_rank(arg, lead, len(value.shape)) for arg in args))
    (first, *rest), attrs = args, value.attrs
    front = first.shape[:lead]
    if value.op == "linear":
        weight = rest[0].reshape(rest[0].shape[lead:])
        return torch.nn.functional.linear(first, weight)
    if value.op == "power":
        return torch.pow(first, attrs[0])  # type: ignore[call-overload]
    if value.op == "reshape":
        return first.reshape(*front, *value.shape)
    if value.op == "expand":
        return _with_rank(first, lead, len(value.shape)).expand((*front, *value.shape))
    if value.op == "permute":
        return first.permute(*range(lead), *(lead + axis for axis in attrs[0]))  # type: ignore[attr-defined]
    if value.op == "cat":
        fronts = torch.broadcast_shapes(*(arg.shape[:lead] for arg in args))
        wide = [arg.expand((*fronts, *arg.shape[lead:])) for arg in args]
        return torch.cat(wide, lead + attrs[0])  # type: ignore[operator]
    if value.op == "slice":
        axis, start, stop, step = (int(attr) for attr in attrs)  # type: ignore[call-overload]
        return first[(slice(None),) * (lead + axis) + (slice(start, stop, step),)]
    if value.op in ("sum", "amax"):
        axes = [lead + axis for axis in attrs[0]]  # type: ignore[attr-defined]
        if value.op == "amax":
            return first.amax(axes)
        return first.sum(axes)
    raise ValueError(f"{value.op} is no primitive")


def _with_rank(tensor: Tensor, lead: int, rank: int) -> Tensor:
    """Axes of size 1 after the leading ones, so that the value's own have rank ``rank``."""
    own = tensor.shape[lead:]
    if len(own) == rank:
        return tensor
    return tensor.reshape(*tensor.shape[:lead], *(1,) * (rank - len(own)), *own)
