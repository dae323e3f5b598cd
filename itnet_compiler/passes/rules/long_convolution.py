"""Rule ``long_convolution``: a product of Fourier transforms, transformed back."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import Node

from ...ir.domain import Domain, Grid, Past
from ...ir.kernel import Spec
from ...ir.long_convolution import LongConvolution
from ..axes import is_weight
from ..axes.sizes import monomial
from ..match import Match, Proposal, Refusal, bind, op_name, propose, rank, rule, shape_of, value_of
from ..operators import operator_name
from .fourier import read_transform

__all__ = ["long_convolution"]

_INVERSES = tuple(f"aten.fft_{name}{count}.default" for name in ("irfft", "ifft") for count in ("", "2", "n"))
# What a norm multiplies fft, and ifft, by: N to this power.
_EXPONENTS = {
    "fft": {"backward": 0.0, "ortho": -0.5, "forward": -1.0},
    "ifft": {"backward": 0.0, "ortho": 0.5, "forward": 1.0},
}


@rule("long_convolution", *_INVERSES, "aten.slice.Tensor")
def long_convolution(node: Node, match: Match) -> Proposal:
    """irfft(rfft(u)·rfft(k)), of which the first half is a causal convolution where half was padding."""
    kept: Any = None
    back = node
    if op_name(node) == "aten.slice.Tensor":
        given = bind(node)
        back, kept = given["self"], given["end"]
        start = given["start"] in (None, 0) and given["step"] == 1
        match.require(start and op_name(back) in _INVERSES, "no first part of a convolution")
        match.require(len(back.users) == 1, "the rest of the convolution is used too")
    name, raw, norm, _ = read_transform(back, match)
    axes = tuple(sorted(axis if axis < 0 else axis - rank(back) for axis in raw))
    match.require(name == "ifft" or axes[-1] == _from_end(raw[-1], back), "irfft halves another axis than the last")
    real, there = name == "irfft", name.removeprefix("i")
    product = bind(back)["self"]
    match.require(operator_name(product) == "mul", "no product of transforms", product)
    match.require(len(product.users) == 1, "the product of transforms is used elsewhere", product)
    first, second = bind(product)["self"], bind(product)["other"]
    match.require(all(_is_complex(one) for one in (first, second)), "no product of two transforms", product)
    region = [product, back] + ([node] if kept is not None else [])
    period = [shape_of(back)[axis] for axis in axes]
    sources = [_transformed(one, there, axes, period, back) for one in (first, second)]
    match.require(any(sources), "neither factor is a transform of the same length", product)
    place = 0 if sources[0] and not (sources[1] and is_weight(first)) else 1
    source, own = sources[place] or (None, 0.0)
    assert source is not None
    region.insert(0, (first, second)[place])
    exponent = own + _EXPONENTS["ifft"][norm]
    given_filter, spectrum = (first, second)[1 - place], True
    other = sources[1 - place]
    if other is not None and (first, second)[1 - place] is not (first, second)[place]:
        region.insert(0, given_filter)
        given_filter, spectrum = other[0], False
        exponent += other[1]
    match.require(rank(given_filter) <= rank(source), "the filter has more axes than the input", given_filter)
    match.require(
        shape_of(back)[: -len(axes)] == shape_of(source)[: -len(axes)] or _same_rest(source, back, axes),
        "the filter widens the input",
        given_filter,
    )
    causal = kept is not None and not spectrum and _is_causal(source, given_filter, axes, bind(node), period)
    if kept is not None and not causal:
        match.refuse("what is kept is not proven to be a causal convolution")
    operands: dict[str, Any] = {"input": source, "filter": given_filter}
    if not causal:
        operands["period"] = _period(back, period, match)
    domain: Domain = Past() if causal else Grid(len(axes))
    kernel = LongConvolution(axes, real, spectrum, causal, exponent)
    spec = Spec(kernel, domain, "long convolution", tuple(operands))
    return propose(spec, operands, *sorted(region))


def _from_end(axis: int, node: Node) -> int:
    return axis if axis < 0 else axis - rank(node)


def _is_complex(node: object) -> bool:
    return isinstance(node, Node) and isinstance(value_of(node), torch.Tensor) and value_of(node).is_complex()


def _transformed(
    node: Node, there: str, axes: tuple[int, ...], period: list[Any], back: Node
) -> tuple[Node, float] | None:
    """What ``node`` is the transform of, over the same axes with the same lengths, and the power of N from its norm."""
    if node.op != "call_function" or len(node.users) != 1:
        return None
    try:
        name, raw, norm, lengths = read_transform(node, Match(node))
    except Refusal:
        return None
    source = bind(node)["self"]
    own = [_from_end(axis, node) for axis in raw]
    if name != there or sorted(own) != list(axes) or (there == "rfft" and own[-1] != axes[-1]):
        return None
    given = dict(zip(own, lengths or [shape_of(source)[axis] for axis in own], strict=True))
    sizes = [value_of(size) if isinstance(size, Node) else size for size in (given[axis] for axis in axes)]
    if any(monomial(mine) != monomial(theirs) for mine, theirs in zip(sizes, period, strict=True)):
        return None
    return source, _EXPONENTS["fft"][norm]


def _same_rest(source: Node, back: Node, axes: tuple[int, ...]) -> bool:
    """Whether the result has the input's extents on all other axes."""
    pairs = list(zip(shape_of(source), shape_of(back), strict=True))
    return all(mine == theirs for place, (mine, theirs) in enumerate(pairs) if place - len(pairs) not in axes)


def _is_causal(source: Node, taps: Node, axes: tuple[int, ...], given: dict[str, Any], period: list[Any]) -> bool:
    """Whether u and k have L positions, N = 2·L, and the first L are kept."""
    if len(axes) != 1 or given["dim"] % rank(source) - rank(source) != axes[0]:
        return False
    length, end = shape_of(source)[axes[0]], given["end"]
    end = value_of(end) if isinstance(end, Node) else end
    same = monomial(shape_of(taps)[axes[0]]) == monomial(length) == monomial(end)
    return same and monomial(period[0]) == monomial(2 * length)


def _period(back: Node, period: list[Any], match: Match) -> list[Any]:
    """N by axis as numbers or nodes."""
    given = bind(back)
    _, raw, _, lengths = read_transform(back, match)
    if lengths is not None:
        by_axis = dict(zip((_from_end(axis, back) for axis in raw), lengths, strict=True))
        return [by_axis[axis] for axis in sorted(by_axis)]
    known = all(isinstance(size, int) for size in period)
    match.require(known, "the length of the result is not given, and not fixed", given["self"])
    return period
