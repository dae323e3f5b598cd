"""Derivatives of the elementwise primitives of pair programs, for reverse and forward differentiation alike.

A rule takes the numbers of the arguments, of the result, and of a factor g, and gives for each argument g times the
partial derivative with respect to it, written into the builder; None where that is zero. In reverse g is the cotangent
of the result, forward the tangent of the argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .builder import Builder

__all__ = ["DERIVATIVES"]

Rule = Callable[[Builder, tuple[int, ...], int, int], "list[int | None]"]


def _unary(derivative: Callable[[Builder, int, int], int]) -> Rule:
    """g times the derivative, written with the argument and the result."""
    return lambda b, args, out, g: [b.mul(g, derivative(b, args[0], out))]


def _nothing(b: Builder, args: tuple[int, ...], out: int, g: int) -> list[int | None]:
    return [None] * len(args)


def _extreme(weaker: str) -> Rule:
    """Of maximum and minimum: not to the one that loses; half to each where they are equal, as in torch."""

    def rule(b: Builder, args: tuple[int, ...], out: int, g: int) -> list[int | None]:
        one, other = args
        half, zero = b.mul(b.constant(0.5), g), b.constant(0.0)
        tie = b.elementwise("eq", one, other)
        return [
            b.where(tie, half, b.where(b.elementwise(weaker, x, y), zero, g)) for x, y in ((one, other), (other, one))
        ]

    return rule


def _where(b: Builder, args: tuple[int, ...], out: int, g: int) -> list[int | None]:
    zero = b.constant(0.0)
    return [None, b.where(args[0], g, zero), b.where(args[0], zero, g)]


DERIVATIVES: dict[str, Rule] = {
    "neg": lambda b, args, out, g: [b.neg(g)],
    "abs": _unary(lambda b, x, y: b.elementwise("sign", x)),
    "exp": _unary(lambda b, x, y: y),
    "log": lambda b, args, out, g: [b.div(g, args[0])],
    "log1p": lambda b, args, out, g: [b.div(g, b.add(args[0], b.constant(1.0)))],
    "expm1": _unary(lambda b, x, y: b.add(y, b.constant(1.0))),
    "sqrt": lambda b, args, out, g: [b.div(b.mul(b.constant(0.5), g), out)],
    "rsqrt": _unary(lambda b, x, y: b.mul(b.constant(-0.5), b.power(y, 3.0))),
    "reciprocal": _unary(lambda b, x, y: b.neg(b.mul(y, y))),
    "sin": _unary(lambda b, x, y: b.elementwise("cos", x)),
    "cos": _unary(lambda b, x, y: b.neg(b.elementwise("sin", x))),
    "tanh": _unary(lambda b, x, y: b.sub(b.constant(1.0), b.mul(y, y))),
    "sigmoid": _unary(lambda b, x, y: b.mul(y, b.sub(b.constant(1.0), y))),
    "erf": _unary(lambda b, x, y: b.mul(b.constant(2 / math.sqrt(math.pi)), b.elementwise("exp", b.neg(b.mul(x, x))))),
    "relu": lambda b, args, out, g: [b.where(b.elementwise("le", args[0], b.constant(0.0)), b.constant(0.0), g)],
    "gelu": _unary(lambda b, x, y: b.elementwise("gelu_grad", x)),
    "gelu_tanh": _unary(lambda b, x, y: b.elementwise("gelu_tanh_grad", x)),
    "add": lambda b, args, out, g: [g, g],
    "sub": lambda b, args, out, g: [g, b.neg(g)],
    "mul": lambda b, args, out, g: [b.mul(g, args[1]), b.mul(g, args[0])],
    "div": lambda b, args, out, g: [b.div(g, args[1]), b.neg(b.div(b.mul(g, out), args[1]))],
    "maximum": _extreme("lt"),
    "minimum": _extreme("gt"),
    "where": _where,
} | dict.fromkeys(("sign", "floor", "detach", "real", "not", "lt", "le", "gt", "ge", "eq", "ne", "and", "or"), _nothing)
