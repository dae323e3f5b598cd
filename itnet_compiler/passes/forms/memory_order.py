"""The order in which the axes of a result lie in memory, where somebody relies on it.

A product that a rule replaces gives its result in some order of memory, and a ``view`` behind it works for that order
alone.
"""

from __future__ import annotations

from torch.fx import Node

from ..effects import Effects
from ..match import bind, op_name, rank, value_of
from ..operators import operator_name
from ..sampling import hint

__all__ = ["between_transpositions", "memory_order"]

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


# What works number by number, in the order in which its input lies.
_NUMBERWISE = frozenset(
    f"aten.{name}.default" for name in "silu relu gelu sigmoid tanh softplus hardswish mish detach".split()
) | {"aten.to.dtype"}


def between_transpositions(source: Node, result: Node) -> bool:
    """Whether ``source`` [N, C, A] is a transposed tensor, and all that is made of ``result`` is transposed back first.

    What comes in between works number by number or takes a part. Every ``view`` of a tensor [N, A, C] that was laid
    out as [N, C, A] is one of a tensor laid out as [N, A, C] too: it can only split axes, or join those of size 1. But
    what was copied then may share memory now, so nothing of it may be written to, or be returned.
    """
    while source.op == "call_function" and op_name(source) in _NUMBERWISE:
        source = source.all_input_nodes[0]
    if not _exchanges(source):
        return False
    made, waiting = [result], list(result.users)
    while waiting:
        user = waiting.pop()
        name = op_name(user) if user.op == "call_function" else ""
        if name in _NUMBERWISE or name == "aten.slice.Tensor":
            made.append(user)
            waiting += user.users
        elif not (_exchanges(user) or name == "aten.sym_size.int"):
            return False
    effects = Effects(result.graph)
    if any(effects.is_written(node) for node in made):
        return False
    return not any(user.op == "output" for node in made for one in effects.sharing(node) for user in one.users)


def _exchanges(node: Node) -> bool:
    """Whether it is a transposition of the last two of three axes."""
    if node.op != "call_function" or op_name(node) not in ("aten.transpose.int", "aten.permute.default"):
        return False
    if rank(node) != 3:
        return False
    given = bind(node)
    if "dims" in given:
        return [axis % 3 for axis in given["dims"]] == [0, 2, 1]
    return {given["dim0"] % 3, given["dim1"] % 3} == {1, 2}
