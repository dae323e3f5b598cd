"""One operator backwards: what it reads, and how a box of its result becomes boxes of that (see ``shifts``).

for source, through in parts_of(node, match):
    terms = through(term)          # what ``term``, a part of the result, is of the source
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
import torch
from torch.fx import Node
from torch.utils._sympy.value_ranges import bound_sympy

from ..axes import is_weight
from ..match import Match, bind, rank, shape_of, value_of
from ..operators import operator_name

__all__ = ["Parts", "Piece", "Term", "Through", "extent", "ordered", "parts_of"]


@dataclass(frozen=True)
class Piece:
    """A stretch along one axis: positions ``at`` … of the result are ``start`` … of the tensor.

    Attributes:
        at: First position in the result.
        start: The position that it takes.
        length: Number of positions.
        wraps: Whether positions are counted around the end of the tensor.
    """

    at: sympy.Expr
    start: sympy.Expr
    length: sympy.Expr
    wraps: bool = False


@dataclass(frozen=True)
class Term:
    """One copy: a box of the tensor put at a box of the result, times ``number`` and ``factors``."""

    pieces: tuple[Piece, ...]
    number: float = 1.0
    factors: tuple[Node, ...] = ()

    @property
    def offset(self) -> tuple[sympy.Expr, ...]:
        """By axis: position taken less position of the result."""
        return tuple(sympy.expand(piece.start - piece.at) for piece in self.pieces)


def extent(size: Any) -> sympy.Expr:
    """An extent, or a number that the graph computes, as an expression."""
    if isinstance(size, Node):
        size = value_of(size)
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


Through = Callable[[Term], Iterable[Term]]
Parts = list[tuple[Node, Through]]


def parts_of(node: Node, match: Match) -> Parts | None:
    """What ``node`` is made of; None where it is neither linear nor a move of boxes."""
    target = node.target
    if node.op != "call_function":
        return None
    if target is operator.getitem:
        return _part_of_split(node)
    if not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
        return None
    reader = _READERS.get(operator_name(node))
    return None if reader is None else reader(node, bind(node), match)


def _same(term: Term) -> Iterable[Term]:
    return (term,)


def _times(number: float, *factors: Node) -> Through:
    def through(term: Term) -> Iterable[Term]:
        return (replace(term, number=term.number * number, factors=(*term.factors, *factors)),)

    return through


def _moved(dim: int, change: Callable[[Piece], Piece | None]) -> Through:
    """What changes boxes along one axis alone; a box that becomes None is gone."""

    def through(term: Term) -> Iterable[Term]:
        piece = change(term.pieces[dim])
        if piece is not None:
            yield replace(term, pieces=(*term.pieces[:dim], piece, *term.pieces[dim + 1 :]))

    return through


def _is_like(node: Node, other: object) -> bool:
    """Whether ``other`` is a tensor of the shape and dtype of ``node``."""
    if not isinstance(other, Node) or not isinstance(value_of(other), torch.Tensor):
        return False
    return shape_of(other) == shape_of(node) and value_of(other).dtype == value_of(node).dtype


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _slice(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    source: Node = given["self"]
    if given.get("step", 1) != 1:
        return None
    dim = given["dim"] % rank(source)
    size, length = extent(shape_of(source)[dim]), extent(shape_of(node)[dim])
    start = extent(given["start"] if given["start"] is not None else 0)
    if start.is_negative:
        if sympy.expand(length + start) != 0 and not (given.get("end") or 0) < 0:
            return None  # more positions are asked for than there are
        start = size + start
    inside = ordered(length + start, size, node)
    if inside is None or inside > 0:
        return None

    def change(piece: Piece) -> Piece | None:
        return None if piece.wraps else replace(piece, start=sympy.expand(piece.start + start))

    return [(source, _checked(_moved(dim, change), dim, match, node))]


def _checked(through: Through, dim: int, match: Match, node: Node) -> Through:
    """Refuse where a box that wraps around is cut."""

    def checked(term: Term) -> Iterable[Term]:
        match.require(not term.pieces[dim].wraps, "a part of a tensor is rolled", node)
        return through(term)

    return checked


def _pad(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    source, sides = given["self"], given["pad"]
    if given.get("mode", "constant") != "constant" or given.get("value") not in (None, 0, 0.0):
        return None
    through: list[Through] = []
    for place in range(len(sides) // 2):
        dim = rank(source) - 1 - place
        low, size = extent(sides[2 * place]), extent(shape_of(source)[dim])
        through.append(_from_part(node, dim, low, size, match))
    return [(source, _in_turn(through))]


def _in_turn(steps: Sequence[Through]) -> Through:
    def through(term: Term) -> Iterable[Term]:
        terms = [term]
        for step in steps:
            terms = [part for each in terms for part in step(each)]
        return terms

    return through


def _from_part(node: Node, dim: int, first: sympy.Expr, size: sympy.Expr, match: Match) -> Through:
    """Of a box of ``node`` what lies in [first, first + size), where another tensor was put from its position 0 on.

    ``first`` may be negative: then the tensor was cut.
    """
    whole = extent(shape_of(node)[dim])

    def change(piece: Piece) -> Piece | None:
        match.require(not piece.wraps, "a part of a tensor is rolled", node)
        if piece.start == 0 and sympy.expand(piece.length - whole) == 0:  # all of it
            low = sympy.Integer(0) if first.is_negative else first
            ends = ordered(first + size, whole, node)
            match.require(ends is not None, "which part is taken depends on sizes", node)
            high = whole if ends and ends > 0 else first + size
        else:
            low = _extreme(piece.start, first, node, match, larger=True)
            high = _extreme(piece.start + piece.length, first + size, node, match, larger=False)
        length = sympy.expand(high - low)
        empty = ordered(length, sympy.Integer(0), node)
        if length.is_nonpositive or (empty is not None and empty < 0):
            return None
        return Piece(sympy.expand(piece.at + low - piece.start), sympy.expand(low - first), length)

    return _moved(dim, change)


def ordered(first: sympy.Expr, second: sympy.Expr, node: Node) -> int | None:
    """−1, 0 or 1 as ``first`` is at most, equal to, or at least ``second`` at all sizes; None where it depends."""
    apart = sympy.expand(first - second)
    if apart.is_number:
        return int(sympy.sign(apart))
    known = _ranges(node)
    if known is None:
        return None
    bounds = bound_sympy(apart, known)
    return 1 if bounds.lower >= 0 else -1 if bounds.upper <= 0 else None


def _ranges(node: Node) -> Any:
    for value in (value_of(each) for each in (node, *node.all_input_nodes)):
        for size in getattr(value, "shape", ()):
            if isinstance(size, torch.SymInt):
                return size.node.shape_env.var_to_range
    return None


def _extreme(first: sympy.Expr, second: sympy.Expr, node: Node, match: Match, *, larger: bool) -> sympy.Expr:
    order = ordered(first, second, node)
    match.require(order is not None, "which part is taken depends on sizes", node)
    return first if ((order or 0) >= 0) == larger else second


def _roll(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    source, dims = given["self"], given["dims"]
    if not dims:
        return None  # the tensor is flattened first
    steps = []
    for shift, dim in zip(given["shifts"], dims, strict=True):
        dim, size, by = dim % rank(source), extent(shape_of(source)[dim]), extent(shift)

        def change(piece: Piece, size: sympy.Expr = size, by: sympy.Expr = by) -> Piece | None:
            whole = sympy.expand(piece.length - size) == 0 and (piece.wraps or piece.start == 0)
            match.require(whole and piece.at == 0, "a part of what is rolled is taken", node)
            return replace(piece, start=sympy.expand(piece.start - by), wraps=True)

        steps.append(_moved(dim, change))
    return [(source, _in_turn(steps))]


def _cat(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    dim = given["dim"] % rank(node)
    first, parts = sympy.Integer(0), []
    for part in given["tensors"]:
        if rank(part) != rank(node) or value_of(part).dtype != value_of(node).dtype:
            return None
        size = extent(shape_of(part)[dim])
        parts.append((part, _from_part(node, dim, first, size, match)))
        first = first + size
    return parts


def _part_of_split(node: Node) -> Parts | None:
    """One of the parts that a tensor is split into, in the positions of the tensor."""
    split, number = node.args
    if not isinstance(split, Node) or operator_name(split) not in _SPLITS or not isinstance(number, int):
        return None
    dim = bind(split)["dim"] % rank(bind(split)["self"])
    first = sum((extent(part.shape[dim]) for part in value_of(split)[:number]), start=sympy.Integer(0))

    def change(piece: Piece) -> Piece | None:
        return None if piece.wraps else replace(piece, start=sympy.expand(piece.start + first))

    return [(split, _moved(dim, change))]


_SPLITS = ("split", "split_with_sizes", "chunk")


def _sum(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    name, alpha = operator_name(node), _number(given.get("alpha", 1))
    first, second = given["self"], given["other"]
    if second == 0 and _is_like(node, first):  # as the built-in sum begins
        return [(first, _times(-1.0 if name == "rsub" else 1.0))]
    if alpha is None or not _is_like(node, first) or not _is_like(node, second):
        return None
    if name == "rsub":
        return [(first, _times(-alpha)), (second, _same)]
    return [(first, _same), (second, _times(alpha if name == "add" else -alpha))]


def _negated(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    return [(given["self"], _times(-1.0))]


def _copied(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    return [(given["self"], _same)]


def _scaled(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    first, second = given["self"], given["other"]
    number = _number(second)
    if operator_name(node) == "div":
        if not number or given.get("rounding_mode") is not None or not _is_like(node, first):
            return None
        return [(first, _times(1.0 / number))]
    if number is not None:
        return [(first, _times(number))] if _is_like(node, first) else None
    for spine, factor in ((first, second), (second, first)):
        if _is_like(node, spine) and _may_weigh(node, factor, match):
            return [(spine, _weighed(node, factor, 1.0, match))]
    return None


def _may_weigh(node: Node, factor: object, match: Match) -> bool:
    tensor = isinstance(factor, Node) and isinstance(value_of(factor), torch.Tensor)
    return tensor and is_weight(factor) and value_of(factor).dtype == value_of(node).dtype  # type: ignore[arg-type]


def _weighed(node: Node, factor: Node, number: float, match: Match) -> Through:
    """Times a weight, which is of extent 1 along every axis of which a part is taken."""

    def through(term: Term) -> Iterable[Term]:
        lead = rank(node) - rank(factor)
        for place, size in enumerate(shape_of(factor), start=lead):
            piece = term.pieces[place]
            whole = piece.at == 0 and piece.start == 0 and not piece.wraps
            single = isinstance(size, int) and size == 1
            fits = whole and sympy.expand(piece.length - extent(shape_of(node)[place])) == 0
            match.require(single or fits, "the weight of a copy differs from place to place", node)
        return (replace(term, number=term.number * number, factors=(*term.factors, factor)),)

    return through


def _lerp(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    """start + weight·(end − start)."""
    first, second, weight = given["self"], given["end"], given["weight"]
    if not _is_like(node, first) or not _is_like(node, second):
        return None
    if (number := _number(weight)) is not None:
        return [(first, _times(1.0 - number)), (second, _times(number))]
    if not _may_weigh(node, weight, match):
        return None
    return [
        (first, _same),
        (first, _weighed(node, weight, -1.0, match)),
        (second, _weighed(node, weight, 1.0, match)),
    ]


def _difference(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    source: Node = given["self"]
    if given["n"] != 1 or given["prepend"] is not None or given["append"] is not None:
        return None
    dim = given["dim"] % rank(source)

    def later(piece: Piece) -> Piece:
        return replace(piece, start=sympy.expand(piece.start + 1))

    return [(source, _in_turn([_moved(dim, later)])), (source, _times(-1.0))]


def _zeros(node: Node, given: dict[str, Any], match: Match) -> Parts | None:
    written = any(
        isinstance(user.target, torch._ops.OpOverload) and user.target._schema.is_mutable for user in _views(node)
    )
    return None if written else []


def _views(node: Node) -> Iterator[Node]:
    """Users of a tensor and of its slices."""
    for user in node.users:
        yield user
        if operator_name(user) in ("slice", "narrow", "select", "view"):
            yield from _views(user)


_READERS: dict[str, Callable[[Node, dict[str, Any], Match], Parts | None]] = {
    "slice": _slice,
    "narrow": _slice,
    "split": _copied,
    "split_with_sizes": _copied,
    "chunk": _copied,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "roll": _roll,
    "cat": _cat,
    "concat": _cat,
    "add": _sum,
    "sub": _sum,
    "rsub": _sum,
    "neg": _negated,
    "clone": _copied,
    "contiguous": _copied,
    "mul": _scaled,
    "div": _scaled,
    "lerp": _lerp,
    "diff": _difference,
    "zeros": _zeros,
    "zeros_like": _zeros,
    "new_zeros": _zeros,
}
