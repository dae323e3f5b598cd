"""The elementwise primitives of pair programs, each with its definition in torch.

The others are in ``ir.pair.dense``: power, reshape, permute, expand, cat, slice, sum, amax, linear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["ELEMENTWISE", "Elementwise"]


@dataclass(frozen=True)
class Elementwise:
    """A primitive that acts on each element.

    Attributes:
        arity: How many values it takes.
        torch: Its definition.
        boolean: Whether the result is a truth value.
        flops: Counted for one element; what is evaluated by polynomials counts as its terms.
    """

    arity: int
    torch: Callable[..., Tensor]
    boolean: bool = False
    flops: int = 1


def _gelu_grad(x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate="none")


def _gelu_tanh_grad(x: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(torch.ones_like(x), x, approximate="tanh")


def _gelu_tanh(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")


ELEMENTWISE: dict[str, Elementwise] = {
    "neg": Elementwise(1, torch.neg),
    "abs": Elementwise(1, torch.abs),
    "sign": Elementwise(1, torch.sign),
    "floor": Elementwise(1, torch.floor),
    "exp": Elementwise(1, torch.exp, flops=12),
    "log": Elementwise(1, torch.log, flops=16),
    "log1p": Elementwise(1, torch.log1p, flops=18),
    "expm1": Elementwise(1, torch.expm1, flops=14),
    "sqrt": Elementwise(1, torch.sqrt, flops=4),
    "rsqrt": Elementwise(1, torch.rsqrt, flops=4),
    "reciprocal": Elementwise(1, torch.reciprocal, flops=4),
    "sin": Elementwise(1, torch.sin, flops=14),
    "cos": Elementwise(1, torch.cos, flops=14),
    "tanh": Elementwise(1, torch.tanh, flops=16),
    "sigmoid": Elementwise(1, torch.sigmoid, flops=16),
    "erf": Elementwise(1, torch.erf, flops=20),
    "relu": Elementwise(1, torch.relu),
    "gelu": Elementwise(1, torch.nn.functional.gelu, flops=22),
    "gelu_grad": Elementwise(1, _gelu_grad, flops=36),
    "gelu_tanh": Elementwise(1, _gelu_tanh, flops=22),
    "gelu_tanh_grad": Elementwise(1, _gelu_tanh_grad, flops=30),
    "detach": Elementwise(1, torch.clone, flops=0),
    "real": Elementwise(1, torch.clone, flops=0),
    "not": Elementwise(1, torch.logical_not, boolean=True),
    "add": Elementwise(2, torch.add),
    "sub": Elementwise(2, torch.sub),
    "mul": Elementwise(2, torch.mul),
    "div": Elementwise(2, torch.div, flops=4),
    "maximum": Elementwise(2, torch.maximum),
    "minimum": Elementwise(2, torch.minimum),
    "lt": Elementwise(2, torch.lt, boolean=True),
    "le": Elementwise(2, torch.le, boolean=True),
    "gt": Elementwise(2, torch.gt, boolean=True),
    "ge": Elementwise(2, torch.ge, boolean=True),
    "eq": Elementwise(2, torch.eq, boolean=True),
    "ne": Elementwise(2, torch.ne, boolean=True),
    "and": Elementwise(2, torch.logical_and, boolean=True),
    "or": Elementwise(2, torch.logical_or, boolean=True),
    "where": Elementwise(3, torch.where),
}
