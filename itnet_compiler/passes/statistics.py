"""Whether a sum, mean, variance … is only there to normalise: to centre or to divide what it was taken of."""

from __future__ import annotations

from torch.fx import Node

from .dependence import tensors_of
from .match import bind
from .operators import EXTREMA, operator_name

__all__ = ["is_statistic", "sums_exponentials"]

# Between a statistic and the division: epsilon, square root, clamps, broadcasting.
_STEPS = frozenset(
    "add sub mul div clamp clamp_min clamp_max maximum to float double expand expand_as unsqueeze squeeze view reshape"
    " where getitem pow sqrt square abs neg contiguous clone detach broadcast_to _to_copy type_as".split()
)
_DIVIDING = frozenset({"rsqrt", "reciprocal"})
_CASTS = frozenset({"to", "float", "double", "_to_copy", "type_as", "clone", "detach", "contiguous"})
_MOST_STEPS = 8


def is_statistic(node: Node) -> bool:
    """Whether the result of a reduction is subtracted from its own source, or ends up in a denominator."""
    centres_only = operator_name(node) in EXTREMA
    steps = _STEPS | {"mean"} if "norm" in operator_name(node) else _STEPS  # a norm over the mean of such norms
    source = _uncast(next(iter(bind(node).values())))
    frontier = {node}
    for _ in range(_MOST_STEPS):
        reached: set[Node] = set()
        for value in frontier:
            for user in value.users:
                name = operator_name(user)
                if _centres(user, name, value, source) or (not centres_only and _divides(user, name, value)):
                    return True
                if name in steps and _stays(user, value):
                    reached.add(user)
        frontier = reached
    return False


def sums_exponentials(node: Node) -> bool:
    """Whether a sum is of exp of something, perhaps masked: what a softmax divides by."""
    waiting = [(next(iter(bind(node).values())), 3)]
    while waiting:
        value, left = waiting.pop()
        value = _uncast(value)
        if not isinstance(value, Node) or value.op != "call_function" or not left:
            continue
        if operator_name(value) in ("exp", "exp2"):
            return True
        if operator_name(value) in ("mul", "where", "masked_fill"):
            waiting += [(source, left - 1) for source in value.all_input_nodes]
    return False


def _centres(user: Node, name: str, value: Node, source: object) -> bool:
    return name == "sub" and _argument(user, 1) is value and _uncast(_argument(user, 0)) is source


def _divides(user: Node, name: str, value: Node) -> bool:
    if name in _DIVIDING:
        return True
    if name == "pow":
        exponent = _argument(user, 1)
        return _argument(user, 0) is value and isinstance(exponent, (int, float)) and exponent < 0
    return name in ("div", "true_divide") and _argument(user, 1) is value


def _stays(user: Node, value: Node) -> bool:
    """Whether the step computes on the statistic alone, rather than joining it with what it was taken of."""
    if operator_name(user) == "where":  # a statistic of each sample, or that of all of them
        return _argument(user, 0) is not value
    if _argument(user, 0) is not value:
        return False
    if len(user.all_input_nodes) == 1 or operator_name(user) in ("expand_as", "type_as", "expand", "view", "reshape"):
        return True
    return [t.shape for t in tensors_of(user)] == [t.shape for t in tensors_of(value)]


def _argument(user: Node, place: int) -> object:
    return user.args[place] if place < len(user.args) else None


def _uncast(value: object) -> object:
    while isinstance(value, Node) and value.op == "call_function" and operator_name(value) in _CASTS:
        value = value.args[0]
    return value
