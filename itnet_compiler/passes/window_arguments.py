"""Reading the arguments of convolution, pooling and interpolation operators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.fx import Node

from .match import Match, value_of

__all__ = ["constant_ints", "output_size", "per_axis", "require_floating"]


def per_axis(values: Sequence[int], spatial: int) -> tuple[int, ...]:
    """One entry an axis; a single entry stands for all of them."""
    return tuple(values) * spatial if len(values) == 1 else tuple(values)


def constant_ints(match: Match, values: Any, what: str, spatial: int) -> tuple[int, ...]:
    """Require an int, or ``spatial`` of them, known at capture."""
    values = values if isinstance(values, Sequence) else (values,)
    match.require(all(isinstance(value, int) for value in values), f"{what} is computed at run time")
    entries = per_axis(values, spatial)
    match.require(len(entries) == spatial, f"{what} has {len(entries)} entries for {spatial} axes")
    return entries


def output_size(given: Any) -> tuple[tuple[int, ...] | None, dict[str, Any]]:
    """The literal size, or None and the operand that holds it."""
    if given is None:
        return None, {}
    if all(isinstance(count, int) for count in given):
        return tuple(given), {}
    return None, {"output_size": list(given)}


def require_floating(match: Match, source: Node) -> None:
    """Refuse integer, boolean, complex and quantised operands: the definitions are over the reals."""
    value = value_of(source)
    real = isinstance(value, torch.Tensor) and value.dtype.is_floating_point
    match.require(real, f"the input is {getattr(value, 'dtype', type(value))}, not real floating-point", source)
