"""Sizes and random values at which graphs are compared: those of the example, others, and numbers like fake ones."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.fx import Node

from ..ir.integral import Like

__all__ = ["Bindings", "draw", "hint", "like", "other_sizes", "real_sizes", "sizes_of"]

# Regions of more work than this are checked with their batch sizes made small; random float64 tensors beyond this
# many elements are never drawn.
_MOST_ELEMENTS = 1 << 27
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)

Bindings = dict[sympy.Symbol, int]


def like(operand: Any) -> Any:
    """``Like`` of an operand, or a list of them; None where it is no tensor."""
    if isinstance(operand, (list, tuple)):
        return [like(item) for item in operand]
    value = operand.meta.get("val") if isinstance(operand, Node) else None
    if not isinstance(value, Tensor):
        return None
    return Like(tuple(hint(size) for size in value.shape), value.dtype, value.device.type)


def sizes_of(inputs: Iterable[Node]) -> Iterator[Any]:
    """Extents of all tensors among the values of nodes, and their numbers."""
    for node in inputs:
        value = node.meta.get("val")
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if isinstance(item, Tensor):
                yield from item.shape
            elif isinstance(item, torch.SymInt):
                yield item


def _symbols(inputs: Iterable[Node]) -> dict[sympy.Symbol, int]:
    """Free size symbols of a region's inputs with the sizes of the example."""
    found: dict[sympy.Symbol, int] = {}
    for size in sizes_of(inputs):
        if isinstance(size, torch.SymInt):
            for symbol in sorted(size.node.expr.free_symbols, key=str):
                hint = _example_sizes(size.node.shape_env).get(symbol)
                found[symbol] = int(hint) if hint is not None else 2
    return found


def _example_sizes(environment: Any) -> dict[sympy.Symbol, Any]:
    known = getattr(environment, "backed_var_to_val", None)  # torch 2.13; var_to_val before
    return environment.var_to_val if known is None else known


def real_sizes(inputs: Iterable[Node]) -> Iterable[Bindings]:
    """The one binding to the sizes of the example."""
    yield _symbols(inputs)


def other_sizes(inputs: Iterable[Node]) -> Iterable[Bindings]:
    """Bindings to try in turn: small distinct primes, then nearer to the example, at last equal sizes kept equal."""
    real = _symbols(inputs)
    if not real:
        return
    for attempt in range(4):
        primes = iter(_PRIMES[attempt * 2 :])
        yield {symbol: next(primes, 53) for symbol in real}
    taken: set[int] = set()
    near: Bindings = {}
    for symbol, size in real.items():
        value = size + 1
        while value in taken:
            value += 1
        taken.add(value)
        near[symbol] = value
    yield near
    yield {symbol: size * factor for factor, (symbol, size) in enumerate(real.items(), start=2)}
    # Not every operator compares the sizes of its arguments (of a mask, say) before it runs.
    renamed = dict(zip(dict.fromkeys(real.values()), _PRIMES, strict=False))
    yield {symbol: renamed.get(size, size) for symbol, size in real.items()}


def draw(value: Any, bindings: Bindings, generator: torch.Generator) -> Any:
    """A random value like the fake one, floating tensors widened to float64; None where it would be too large."""
    if isinstance(value, (list, tuple)):
        items = [draw(item, bindings, generator) for item in value]
        return None if any(item is None for item in items) else type(value)(items)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        return _bind(value, bindings)
    if not isinstance(value, Tensor):
        return value
    if (constant := getattr(value, "constant", None)) is not None:
        return constant.to(torch.float64) if constant.is_floating_point() else constant
    shape = [_bind(size, bindings) for size in value.shape]
    if any(size < 0 for size in shape):
        raise ValueError("negative size")
    if torch.Size(shape).numel() > _MOST_ELEMENTS:
        return None
    if value.dtype is torch.bool:
        return torch.rand(shape, generator=generator) < 0.8
    if value.is_complex():
        return torch.randn(shape, generator=generator, dtype=torch.complex128)
    if not value.is_floating_point():
        return torch.randint(0, 2, shape, generator=generator, dtype=value.dtype)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
    return _like_layout(drawn, value)


def _like_layout(drawn: Tensor, fake: Tensor) -> Tensor:
    """``drawn`` with its axes laid out in memory in the order of ``fake``, since some operators look at strides."""
    order = sorted(range(fake.dim()), key=lambda axis: (-hint(fake.stride(axis)), axis))
    inverse = [order.index(axis) for axis in range(fake.dim())]
    return drawn.permute(order).contiguous().permute(inverse)


def hint(size: Any) -> int:
    """A size as a number: that of the example where it is symbolic."""
    return size if isinstance(size, int) else int(size.node.hint if size.node.has_hint() else 2)


def _bind(size: Any, bindings: Bindings) -> int:
    if isinstance(size, int):
        return size
    bound = size.node.expr.xreplace({symbol: sympy.Integer(value) for symbol, value in bindings.items()})
    return int(bound)
