"""The order in which the axes of a result lie in memory, where somebody relies on it.

A product that a rule replaces gives its result in some order of memory, and a ``view`` behind it works for that order
alone.
"""

from __future__ import annotations

from torch.fx import Node

from ..match import value_of
from ..operators import operator_name
from ..sampling import hint

__all__ = ["memory_order"]

# What takes a tensor in any order of memory, and gives one whose order does not depend on it, or copies.
_INDIFFERENT = frozenset(
    "reshape flatten contiguous linear matmul bmm mm einsum add sub mul div layer_norm conv1d conv2d batch_norm sum"
    " mean relu gelu silu sigmoid tanh cat stack sym_size softmax".split()
)
_PASSED_ON = frozenset("transpose permute mT unsqueeze squeeze select slice dropout to detach alias movedim".split())


def memory_order(node: Node) -> tuple[int, ...]:
    """Axes by stride, longest first, where the order in memory may be relied on: by a view, or by who called."""
    waiting, seen = list(node.users), set[Node]()
    while waiting:
        user = waiting.pop()
        if user in seen:
            continue
        seen.add(user)
        name = operator_name(user) if user.op == "call_function" else ""
        if name in _PASSED_ON:
            waiting += user.users
        elif name not in _INDIFFERENT:
            strides = [hint(step) for step in value_of(node).stride()]
            return tuple(sorted(range(len(strides)), key=lambda place: (-strides[place], place)))
    return ()
