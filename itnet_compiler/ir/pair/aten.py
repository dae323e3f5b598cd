"""How operators of a traced pair function become primitives: one entry an operator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from .builder import Builder, broadcast
from .program import SHARED

__all__ = ["BOOLEAN", "OPERATORS", "Refusal"]


class Refusal(Exception):
    """An operator, or a use of one, that has no primitive. The text says what to write instead."""


Rule = Callable[..., Any]
OPERATORS: dict[str, Rule] = {}


def _entry(*names: str) -> Callable[[Rule], Rule]:
    def register(rule: Rule) -> Rule:
        OPERATORS.update(dict.fromkeys(names, rule))
        return rule

    return register


def _value(b: Builder, x: Any) -> int:
    """A value; Python numbers become constants."""
    if isinstance(x, (bool, int, float)) and not isinstance(x, Number):
        return b.constant(float(x))
    return x


class Number(int):
    """Number of a value of the program, as opposed to an integer that the function wrote."""


def _axes(b: Builder, x: int, dim: Any) -> list[int]:
    rank = len(b.shape(x))
    if dim is None or dim == []:
        return list(range(rank))
    return [axis % rank if rank else 0 for axis in ([dim] if isinstance(dim, int) else dim)]


# -- Elementwise -------------------------------------------------------------------------------------------------


def _unary(op: str) -> Rule:
    return lambda b, x, **_: b.elementwise(op, x)


for _op in ("neg", "abs", "exp", "log", "log1p", "expm1", "sqrt", "rsqrt", "reciprocal", "sin", "cos", "tanh"):
    OPERATORS[f"aten.{_op}.default"] = _unary(_op)
for _op in ("sigmoid", "erf", "relu", "floor", "detach"):
    OPERATORS[f"aten.{_op}.default"] = _unary(_op)
OPERATORS["aten.sgn.default"] = OPERATORS["aten.sign.default"] = _unary("sign")
OPERATORS["aten.logical_not.default"] = OPERATORS["aten.bitwise_not.default"] = _unary("not")


def _binary(op: str) -> Rule:
    return lambda b, x, y, **_: b.elementwise(op, _value(b, x), _value(b, y))


for _op in ("lt", "le", "gt", "ge", "eq", "ne"):
    OPERATORS[f"aten.{_op}.Tensor"] = OPERATORS[f"aten.{_op}.Scalar"] = _binary(_op)
for _op in ("maximum", "minimum"):
    OPERATORS[f"aten.{_op}.default"] = _binary(_op)
for _op, _name in (("and", "logical_and.default"), ("or", "logical_or.default")):
    OPERATORS[f"aten.{_name}"] = OPERATORS[f"aten.bitwise_{_op}.Tensor"] = _binary(_op)
    OPERATORS[f"aten.__{_op}__.Tensor"] = OPERATORS[f"aten.{_name}"]


@_entry("aten.mul.Tensor", "aten.mul.Scalar")
def _mul(b: Builder, x: Any, y: Any) -> int:
    return b.mul(_value(b, x), _value(b, y))


@_entry("aten.add.Tensor", "aten.add.Scalar")
def _add(b: Builder, x: Any, y: Any, alpha: float = 1) -> int:
    return b.add(_value(b, x), b.mul(_value(b, y), b.constant(alpha)))


@_entry("aten.sub.Tensor", "aten.sub.Scalar")
def _sub(b: Builder, x: Any, y: Any, alpha: float = 1) -> int:
    return b.sub(_value(b, x), b.mul(_value(b, y), b.constant(alpha)))


@_entry("aten.rsub.Scalar", "aten.rsub.Tensor")
def _rsub(b: Builder, x: Any, y: Any, alpha: float = 1) -> int:
    return _sub(b, y, x, alpha)


@_entry("aten.div.Tensor", "aten.div.Scalar")
def _div(b: Builder, x: Any, y: Any) -> int:
    if isinstance(y, (int, float)) and not isinstance(y, Number) and y != 0 and math.log2(abs(y)).is_integer():
        return b.mul(x, b.constant(1.0 / y))  # exact
    return b.div(_value(b, x), _value(b, y))


@_entry("aten.pow.Tensor_Scalar")
def _pow(b: Builder, x: int, exponent: float) -> int:
    return b.power(x, float(exponent))


@_entry("aten.square.default")
def _square(b: Builder, x: int) -> int:
    return b.mul(x, x)


@_entry("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar")
def _where(b: Builder, condition: int, x: Any, y: Any) -> int:
    return b.where(condition, _value(b, x), _value(b, y))


@_entry("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def _masked_fill(b: Builder, x: int, mask: int, number: Any) -> int:
    return b.where(mask, _value(b, number), x)


@_entry("aten.clamp.default", "aten.clamp.Tensor", "aten.clamp_min.default", "aten.hardtanh.default")
def _clamp(b: Builder, x: int, low: Any = None, high: Any = None) -> int:
    """Inside the bounds and on them the gradient passes, as in torch."""
    result = x
    for bound, op in ((low, "lt"), (high, "gt")):
        if bound is not None:
            limit = _value(b, bound)
            result = b.where(b.elementwise(op, result, limit), limit, result)
    return result


@_entry("aten.clamp_max.default")
def _clamp_max(b: Builder, x: int, high: Any) -> int:
    return _clamp(b, x, None, high)


@_entry("aten.gelu.default")
def _gelu(b: Builder, x: int, approximate: str = "none") -> int:
    return b.elementwise("gelu" if approximate == "none" else "gelu_tanh", x)


@_entry("aten.silu.default")
def _silu(b: Builder, x: int) -> int:
    return b.mul(x, b.elementwise("sigmoid", x))


@_entry("aten.softplus.default")
def _softplus(b: Builder, x: int, beta: float = 1, threshold: float = 20) -> int:
    scaled = b.mul(x, b.constant(beta))
    above = b.elementwise("gt", scaled, b.constant(threshold))
    curved = b.elementwise("log1p", b.elementwise("exp", b.where(above, b.constant(0.0), scaled)))
    return b.where(above, x, b.mul(curved, b.constant(1 / beta)))


@_entry("aten.leaky_relu.default")
def _leaky_relu(b: Builder, x: int, slope: float = 0.01) -> int:
    return b.where(b.elementwise("gt", x, b.constant(0.0)), x, b.mul(x, b.constant(slope)))


@_entry("aten.elu.default")
def _elu(b: Builder, x: int, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> int:
    positive = b.elementwise("gt", x, b.constant(0.0))
    below = b.elementwise("expm1", b.mul(b.where(positive, b.constant(0.0), x), b.constant(input_scale)))
    return b.mul(b.where(positive, x, b.mul(below, b.constant(alpha))), b.constant(scale))


@_entry("aten.zeros_like.default")
def _zeros_like(b: Builder, x: int, **_: Any) -> int:
    return b.expand(b.constant(0.0), b.shape(x))


@_entry("aten.ones_like.default")
def _ones_like(b: Builder, x: int, **_: Any) -> int:
    return b.expand(b.constant(1.0), b.shape(x))


@_entry("aten.full_like.default")
def _full_like(b: Builder, x: int, number: float, **_: Any) -> int:
    return b.expand(b.constant(number), b.shape(x))


@_entry("aten._to_copy.default", "aten.clone.default", "aten.alias.default", "aten.lift_fresh_copy.default")
def _copy(b: Builder, x: int, dtype: Any = None, **_: Any) -> int:
    if dtype is not None and not dtype.is_floating_point:
        raise Refusal(f"a cast to {str(dtype).removeprefix('torch.')}; pair functions compute in floating point")
    return b.elementwise("real", x) if b.values[x].op in BOOLEAN else x


BOOLEAN = ("lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not")


# -- Shapes ------------------------------------------------------------------------------------------------------


@_entry("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
def _view(b: Builder, x: int, shape: Sequence[int]) -> int:
    known = math.prod(n for n in shape if n != -1)
    full = tuple(math.prod(b.shape(x)) // known if n == -1 and known else n for n in shape)
    return b.reshape(x, full)


@_entry("aten.unsqueeze.default")
def _unsqueeze(b: Builder, x: int, dim: int) -> int:
    shape = list(b.shape(x))
    shape.insert(dim % (len(shape) + 1), 1)
    return b.reshape(x, tuple(shape))


@_entry("aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default", "aten.squeeze_.dim")
def _squeeze(b: Builder, x: int, dim: Any = None) -> int:
    axes = _axes(b, x, dim)
    return b.reshape(x, tuple(n for axis, n in enumerate(b.shape(x)) if n != 1 or axis not in axes))


@_entry("aten.permute.default")
def _permute(b: Builder, x: int, order: Sequence[int]) -> int:
    return b.permute(x, order)


@_entry("aten.t.default")
def _t(b: Builder, x: int) -> int:
    return x if len(b.shape(x)) < 2 else b.transpose(x)


@_entry("aten.transpose.int")
def _transpose(b: Builder, x: int, one: int, other: int) -> int:
    order = list(range(len(b.shape(x))))
    order[one], order[other] = order[other], order[one]
    return b.permute(x, order)


@_entry("aten.expand.default")
def _expand(b: Builder, x: int, shape: Sequence[int], implicit: bool = False) -> int:
    own = (1,) * (len(shape) - len(b.shape(x))) + b.shape(x)
    return b.expand(x, tuple(o if n == -1 else n for n, o in zip(shape, own, strict=True)))


@_entry("aten.cat.default")
def _cat(b: Builder, parts: Sequence[int], dim: int = 0) -> int:
    return b.cat([part for part in parts if b.values[part].size], dim)


@_entry("aten.stack.default")
def _stack(b: Builder, parts: Sequence[int], dim: int = 0) -> int:
    return b.cat([_unsqueeze(b, part, dim) for part in parts], dim)


@_entry("aten.slice.Tensor")
def _slice(b: Builder, x: int, dim: int = 0, start: Any = None, stop: Any = None, step: int = 1) -> int:
    bounds = range(b.shape(x)[dim])[slice(start, stop, step)]
    return b.slice(x, dim, bounds.start, max(bounds.start, bounds.stop), step)


@_entry("aten.select.int")
def _select(b: Builder, x: int, dim: int, index: int) -> int:
    shape = list(b.shape(x))
    axis = dim % len(shape)
    place = index % shape.pop(axis)
    return b.reshape(b.slice(x, axis, place, place + 1), tuple(shape))


@_entry("aten.split.Tensor", "aten.split_with_sizes.default")
def _split(b: Builder, x: int, sizes: Any, dim: int = 0) -> list[int]:
    length = b.shape(x)[dim]
    if isinstance(sizes, int):
        sizes = [min(sizes, length - start) for start in range(0, length, sizes)]
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    return [b.slice(x, dim, start, start + size) for start, size in zip(starts, sizes, strict=True)]


@_entry("aten.unbind.int")
def _unbind(b: Builder, x: int, dim: int = 0) -> list[int]:
    return [_select(b, x, dim, place) for place in range(b.shape(x)[dim])]


@_entry("<built-in function getitem>")
def _getitem(b: Builder, parts: Sequence[int], place: int) -> int:
    return parts[place]


# -- Reductions and products -------------------------------------------------------------------------------------


@_entry("aten.sum.default", "aten.sum.dim_IntList")
def _sum(b: Builder, x: int, dim: Any = None, keepdim: bool = False, **_: Any) -> int:
    return b.sum(x, _axes(b, x, dim), keepdim)


@_entry("aten.mean.default", "aten.mean.dim")
def _mean(b: Builder, x: int, dim: Any = None, keepdim: bool = False, **_: Any) -> int:
    axes = _axes(b, x, dim)
    count = math.prod(b.shape(x)[axis] for axis in axes) if b.shape(x) else 1
    return b.mul(b.sum(x, axes, keepdim), b.constant(1 / count))


@_entry("aten.var.correction", "aten.var.dim")
def _var(b: Builder, x: int, dim: Any = None, correction: float | None = 1, keepdim: bool = False) -> int:
    axes = _axes(b, x, dim)
    count = math.prod(b.shape(x)[axis] for axis in axes)
    centred = b.sub(x, _mean(b, x, axes, True))
    squares = b.sum(b.mul(centred, centred), axes, keepdim)
    return b.mul(squares, b.constant(1 / (count - (1 if correction is None else correction))))


@_entry("aten.std.correction")
def _std(b: Builder, x: int, dim: Any = None, correction: float | None = 1, keepdim: bool = False) -> int:
    return b.elementwise("sqrt", _var(b, x, dim, correction, keepdim))


@_entry("aten.amax.default", "aten.max.default")
def _amax(b: Builder, x: int, dim: Any = None, keepdim: bool = False) -> int:
    return b.amax(x, _axes(b, x, dim), keepdim)


@_entry("aten._softmax.default")
def _softmax(b: Builder, x: int, dim: int, half: bool = False) -> int:
    shifted = b.elementwise("exp", b.sub(x, b.elementwise("detach", b.amax(x, [dim], keepdim=True))))
    return b.div(shifted, b.sum(shifted, [dim], keepdim=True))


@_entry("aten.linalg_vector_norm.default")
def _norm(b: Builder, x: int, order: float = 2, dim: Any = None, keepdim: bool = False, **_: Any) -> int:
    """The 2-norm; its gradient at 0 is 0, as in torch."""
    axes = _axes(b, x, dim)
    if order == 1:
        return b.sum(b.elementwise("abs", x), axes, keepdim)
    if order != 2:
        raise Refusal(f"a vector norm of order {order}; there are 1 and 2")
    total = b.sum(b.mul(x, x), axes, keepdim)
    zero = b.elementwise("eq", total, b.constant(0.0))
    return b.where(zero, b.constant(0.0), b.elementwise("sqrt", b.where(zero, b.constant(1.0), total)))


@_entry("aten.mm.default")
def _mm(b: Builder, x: int, y: int) -> int:
    return b.matmul(x, y)


@_entry("aten.mv.default")
def _mv(b: Builder, x: int, y: int) -> int:
    (rows, columns) = b.shape(x)
    if b.side(x) == SHARED:
        return b.linear(y, x)
    return b.reshape(b.matmul(x, b.reshape(y, (columns, 1))), (rows,))


@_entry("aten.dot.default", "aten.vdot.default")
def _dot(b: Builder, x: int, y: int) -> int:
    return b.sum(b.mul(x, y), [0])


@_entry("aten.addmm.default")
def _addmm(b: Builder, bias: int, x: int, y: int, beta: float = 1, alpha: float = 1) -> int:
    product = b.mul(b.matmul(x, y), b.constant(alpha))
    return b.add(product, b.mul(bias, b.constant(beta)))


@_entry("aten.addmv.default")
def _addmv(b: Builder, bias: int, x: int, y: int, beta: float = 1, alpha: float = 1) -> int:
    return b.add(b.mul(_mv(b, x, y), b.constant(alpha)), b.mul(bias, b.constant(beta)))


@_entry("aten.bmm.default")
def _bmm(b: Builder, x: int, y: int) -> int:
    (batch, rows, _), (_, _, columns) = b.shape(x), b.shape(y)
    if batch == 1:
        return _unsqueeze(b, b.matmul(_squeeze(b, x, 0), _squeeze(b, y, 0)), 0)
    swapped = b.permute(y, (0, 2, 1))
    left, right = _unsqueeze(b, x, 2), _unsqueeze(b, swapped, 1)
    assert broadcast(b.shape(left), b.shape(right))[:3] == (batch, rows, columns)
    return b.sum(b.mul(left, right), [-1])


@_entry("aten.native_layer_norm.default")
def _layer_norm(b: Builder, x: int, shape: Sequence[int], weight: Any, bias: Any, eps: float) -> list[Any]:
    axes = list(range(-len(shape), 0))
    centred = b.sub(x, _mean(b, x, axes, True))
    variance = _mean(b, b.mul(centred, centred), axes, True)
    scale = b.elementwise("rsqrt", b.add(variance, b.constant(eps)))
    result = b.mul(centred, scale)
    result = result if weight is None else b.mul(result, weight)
    return [result if bias is None else b.add(result, bias), None, None]
