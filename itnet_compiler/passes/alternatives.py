"""Whether a reduction adds up results of different computations, stacked for it: ``stack([f(x), g(x)]).sum(0)``.

The axis of such a stack counts no positions: what is added belongs to one position. Where parts of one tensor are
stacked, as a loop over time does, it may.
"""

from __future__ import annotations

from torch.fx import Node

from .dependence import tensors_of
from .match import bind
from .operators import CONTRACTIONS, NORMALISATIONS, POINTWISE, VIEWS, operator_name

__all__ = ["adds_alternatives"]

_PARTS = frozenset("select slice narrow getitem unbind split split_with_sizes chunk unfold diagonal".split())
_FOLLOWED = POINTWISE | VIEWS | NORMALISATIONS | CONTRACTIONS
# Nodes behind one part of a stack that are looked at.
_MOST = 64


def adds_alternatives(node: Node) -> bool:
    """Whether ``node`` reduces the axis that ``stack`` has made, and no two of the tensors in it are parts of one."""
    given = bind(node)
    stack = given.get("self")
    if not isinstance(stack, Node) or stack.op != "call_function" or operator_name(stack) != "stack":
        return False
    dims = given.get("dim")
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    count = len(tensors_of(stack)[0].shape)
    if len(dims) != 1 or dims[0] is None or dims[0] % count != bind(stack)["dim"] % count:
        return False
    met: set[Node] = set()
    for part in bind(stack)["tensors"]:
        origins = _origins(part)
        if origins is None or origins & met:
            return False
        met |= origins
    return True


def _origins(part: Node) -> set[Node] | None:
    """The tensors that ``part`` is computed from parts of, position by position; None where there is no end to it."""
    waiting, seen, found = [part], {part}, set[Node]()
    while waiting:
        one = waiting.pop()
        if one.op != "call_function" or operator_name(one) not in _FOLLOWED:
            continue
        if operator_name(one) in _PARTS:
            found.add(one.all_input_nodes[0])
            continue
        new = [source for source in one.all_input_nodes if source not in seen and tensors_of(source)]
        seen.update(new)
        waiting += new
        if len(seen) > _MOST:
            return None
    return found
