"""What a mask lets through, proven from how it is made: comparisons of positions, triangles of constants.

    pattern = read(node, axes, tracer, query, key)     # Pattern of the elements of a mask over two labels, or None

Every element of such a mask is one number where a condition on the positions i and j holds and another where it does
not (see ``mask_conditions``).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...ir.steps import LOW
from ..match import bind, value_of
from ..operators import operator_name
from .labels import Axes, Tracer
from .mask_conditions import Condition, Pattern, atom

__all__ = ["made_of", "may_hide", "read", "within_segments"]


def read(node: Node, axes: Axes, tracer: Tracer) -> Pattern | None:
    """The pattern of a mask whose axes have these labels, or None where it is not proven to have one."""
    try:
        found = _Reader(tracer).element(node, axes, 0)
    except (KeyError, TypeError, ValueError, AttributeError):
        return None
    return found if isinstance(found, Pattern) else None


def made_of(node: Node) -> list[Node]:
    """A node that is made of numbers alone with all that makes it."""
    found: dict[Node, None] = {}
    waiting = [node]
    while waiting:
        one = waiting.pop()
        found[one] = None
        waiting += [source for source in one.all_input_nodes if isinstance(value_of(source), Tensor)]
    return list(found)


def within_segments(node: Node, axes: Axes, tracer: Tracer, query: str, key: str) -> bool | None:
    """Whether a mask is true just where one number of the query equals that of the key (False: where it does not).

    None where neither is proven. Packed sequences are masked so.
    """
    name, given = operator_name(node), bind(node) if node.op == "call_function" else {}
    if name in ("logical_not", "bitwise_not") and isinstance(given["self"], Node):
        inner = within_segments(given["self"], axes, tracer, query, key)
        return None if inner is None else not inner
    if name not in ("eq", "ne"):
        step = tracer.back(node, axes)
        return None if step is None else within_segments(*step, tracer, query, key)
    sides = []
    for side in (given["self"], given["other"]):
        own = tracer.aligned(side, axes) if isinstance(side, Node) and isinstance(value_of(side), Tensor) else None
        if own is None:
            return None
        while (step := tracer.back(side, own)) is not None:
            side, own = step
        sides.append((side, tracer.resolve(own)))
    (first, one), (second, other) = sides
    swapped = {query: key, key: query}
    exchanged = tuple(tuple(swapped.get(label, label) for label in axis) for axis in other)
    same = first is second and one == exchanged and one != other
    return (name == "eq") if same else None


def may_hide(node: Node) -> bool:
    """Whether a tensor may hold −∞ or very low numbers: it is an input or a buffer, or made with such a number.

    What comes out of a layer with weights is a bias.
    """
    waiting, seen = [node], set[Node]()
    while waiting:
        one = waiting.pop()
        if one in seen or not isinstance(value_of(one), Tensor):
            continue
        seen.add(one)
        if one.op == "placeholder" or len(seen) > 200:
            return True
        if one.op == "get_attr":
            if not value_of(one).requires_grad:
                return True
            continue
        if any(isinstance(value, (int, float)) and abs(value) >= -LOW for value in (*one.args, *one.kwargs.values())):
            return True
        if one.op == "call_function" and operator_name(one) not in _WEIGHTED:
            waiting += one.all_input_nodes
    return False


_WEIGHTED = frozenset("linear embedding conv1d conv2d conv3d matmul bmm einsum mm addmm baddbmm layer_norm".split())


@dataclass(frozen=True)
class _Place:
    """An integer: Σ factor·position(label) + constant."""

    terms: tuple[tuple[str, int], ...]
    constant: int


_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "less": operator.lt,
    "less_equal": operator.le,
    "greater": operator.gt,
    "greater_equal": operator.ge,
}
_FILLED = {"ones": 1.0, "ones_like": 1.0, "new_ones": 1.0, "zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0}
_KEPT = frozenset("to _to_copy type_as float double half bfloat16 int long bool".split())
Element = Pattern | _Place | float | None


class _Reader:
    def __init__(self, tracer: Tracer) -> None:
        self.tracer = tracer

    def element(self, node: object, axes: Axes, depth: int) -> Element:
        """What the element at the positions that ``axes`` name is."""
        if isinstance(node, (bool, int, float)):
            return float(node)
        if not isinstance(node, Node) or node.op != "call_function" or depth > 40:
            return None
        name, given = operator_name(node), bind(node)
        if name in _FILLED or name in ("full", "new_full", "full_like", "scalar_tensor"):
            value = _FILLED.get(name, given.get("fill_value", given.get("s")))
            return float(value) if isinstance(value, (bool, int, float)) else None
        if name == "arange":
            return _places(given, self.tracer.resolve(axes)[0])
        if name in ("tril", "triu"):
            return self._triangle(name, given, axes, depth)
        if name in _KEPT and isinstance(given["self"], Node):
            return self._cast(node, self.element(given["self"], axes, depth + 1))
        if (step := self.tracer.back(node, axes)) is not None:
            return self.element(step[0], step[1], depth + 1)
        if name == "floor_divide" or (name == "div" and given.get("rounding_mode") == "floor"):
            return _block(self._aligned(given["self"], axes, depth), given["other"])
        if name in ("logical_not", "bitwise_not"):
            return _mapped(self.element(given["self"], axes, depth + 1), lambda value: float(not value))
        if name in ("masked_fill", "where"):
            return self._choice(name, given, axes, depth)
        return self._binary(name, given, axes, depth)

    @staticmethod
    def _cast(node: Node, found: Element) -> Element:
        if value_of(node).dtype == torch.bool:
            return _mapped(found, lambda value: float(bool(value)))
        return found

    def _aligned(self, node: object, axes: Axes, depth: int) -> Element:
        if not isinstance(node, Node):
            return self.element(node, axes, depth + 1)
        if not isinstance(value_of(node), Tensor):
            return None
        own = self.tracer.aligned(node, axes)
        return None if own is None else self.element(node, own, depth + 1)

    def _triangle(self, name: str, given: dict[str, Any], axes: Axes, depth: int) -> Element:
        """tril keeps j − i ≤ d, triu keeps j − i ≥ d; elsewhere 0."""
        inner = self.element(given["self"], axes, depth + 1)
        row, column = self.tracer.resolve(axes)[-2:]
        offset = given.get("diagonal", 0)
        if not isinstance(inner, float) or not isinstance(offset, int) or len(row) != 1 or len(column) != 1:
            return None
        lower = {row[0]: 1, column[0]: -1}
        if name == "tril":
            return Pattern(Condition(frozenset({atom(lower, offset)})), inner, 0.0)
        return Pattern(Condition(frozenset({atom({row[0]: -1, column[0]: 1}, -offset)})), inner, 0.0)

    def _choice(self, name: str, given: dict[str, Any], axes: Axes, depth: int) -> Element:
        if name == "masked_fill":
            test, yes, no = given["mask"], given["value"], given["self"]
        else:
            test, yes, no = given["condition"], given["self"], given["other"]
        chosen, first, second = (self._aligned(part, axes, depth) for part in (test, yes, no))
        if not isinstance(chosen, Pattern) or not isinstance(first, float) or not isinstance(second, float):
            return None
        return _mapped(chosen, lambda value: first if value else second)

    def _binary(self, name: str, given: dict[str, Any], axes: Axes, depth: int) -> Element:
        if "other" not in given or given.get("alpha", 1) != 1:
            return None
        first, second = (self._aligned(given[side], axes, depth) for side in ("self", "other"))
        if first is None or second is None:
            return None
        if name in _COMPARISONS:
            return _compared(name, first, second)
        if name in ("logical_and", "bitwise_and", "__and__", "logical_or", "bitwise_or", "__or__"):
            return _joined(first, second, "or" in name)
        arithmetic = {"add": operator.add, "sub": operator.sub, "mul": operator.mul}.get(name)
        if name == "rsub":
            first, second, arithmetic = second, first, operator.sub
        if arithmetic is None:
            return None
        if isinstance(first, _Place) or isinstance(second, _Place):
            return _moved(name, first, second)
        if isinstance(first, float) and isinstance(second, Pattern):
            return _mapped(second, lambda value: arithmetic(first, value))
        if isinstance(first, Pattern) and isinstance(second, float):
            return _mapped(first, lambda value: arithmetic(value, second))
        return None


def _block(place: Element, size: object) -> Element:
    """The number of the block of ``size`` positions, as a position of its own."""
    if not isinstance(place, _Place) or type(size) is not int or size < 1 or place.constant:
        return None
    if len(place.terms) != 1 or place.terms[0][1] != 1:
        return None
    return _Place(((f"{place.terms[0][0]}//{size}", 1),), 0)


def _places(given: dict[str, Any], axis: tuple[str, ...]) -> Element:
    start, step = given.get("start", 0), given.get("step", 1)
    if not isinstance(start, int) or not isinstance(step, int):
        return None
    if not axis:
        return float(start)
    return _Place(((axis[0], step),), start) if len(axis) == 1 else None


def _mapped(found: Element, function: Callable[[float], float]) -> Element:
    if isinstance(found, float):
        return function(found)
    if not isinstance(found, Pattern):
        return None
    inside, outside = function(found.inside), function(found.outside)
    return None if math.isnan(inside) or math.isnan(outside) else Pattern(found.condition, inside, outside)


def _moved(name: str, first: Element, second: Element) -> Element:
    """Sums and differences of positions, and with numbers."""
    one, other = (_as_place(value) for value in (first, second))
    if one is None or other is None or name not in ("add", "sub", "rsub"):
        return None
    sign = 1 if name == "add" else -1
    terms = dict(one.terms)
    for label, factor in other.terms:
        terms[label] = terms.get(label, 0) + sign * factor
    return _Place(atom(terms, 0)[0], one.constant + sign * other.constant)


def _as_place(value: Element) -> _Place | None:
    if isinstance(value, float) and value.is_integer():
        return _Place((), int(value))
    return value if isinstance(value, _Place) else None


def _compared(name: str, first: Element, second: Element) -> Element:
    if isinstance(first, Pattern) and isinstance(second, float):
        return _mapped(first, lambda value: float(_COMPARISONS[name](value, second)))
    one, other = _as_place(first), _as_place(second)
    if one is None or other is None:
        return None
    difference = _moved("sub", one, other)
    assert isinstance(difference, _Place)
    up = (dict(difference.terms), difference.constant)
    down = ({label: -factor for label, factor in difference.terms}, -difference.constant)
    above, below = atom(*up), atom(*down)  # first ≥ second, second ≥ first
    strictly = lambda one: (one[0], one[1] - 1)  # noqa: E731
    found = {
        "ge": {above},
        "gt": {strictly(above)},
        "le": {below},
        "lt": {strictly(below)},
        "eq": {above, below},
        "ne": {above, below},
    }.get({"greater": "gt", "greater_equal": "ge", "less": "lt", "less_equal": "le"}.get(name, name))
    if found is None or not difference.terms:
        return None
    condition = Condition(frozenset(found))
    return Pattern(condition.inverse() if name == "ne" else condition, 1.0, 0.0)


def _joined(first: Element, second: Element, either: bool) -> Element:
    if not isinstance(first, Pattern) or not isinstance(second, Pattern):
        return None
    one, other = first.where(bool), second.where(bool)
    if one is None or other is None:
        return None
    both = one.joined(other, either)
    return None if both is None else Pattern(both, 1.0, 0.0)
