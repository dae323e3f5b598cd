"""Single operators read as what they are in an attention: products, sums, constants, softmaxes."""

from __future__ import annotations

from collections.abc import Callable

from torch import SymInt, Tensor
from torch.fx import Node

from ..axes.sizes import ONE, monomial
from ..match import bind, op_name, rank, shape_of, value_of
from ..operators import operator_name
from .contraction import Contraction, contraction

__all__ = [
    "LOG_SOFTMAXES",
    "SOFTMAXES",
    "as_sum",
    "constant",
    "is_tensor",
    "leads_to_joined_products",
    "leads_to_product",
    "leads_to_softmax",
    "read_product",
    "without_sum",
]

SOFTMAXES = frozenset({"softmax", "_softmax", "special_softmax"})
LOG_SOFTMAXES = frozenset({"log_softmax", "_log_softmax", "special_log_softmax"})
# Nodes that a search for the end of a chain looks at.
_MOST = 256


def read_product(node: object) -> tuple[Contraction, list[Node]] | None:
    """A product as a contraction, with the nodes that it consists of: one operator, or a sum of a product."""
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    name = operator_name(node)
    if name != "sum":
        try:
            read = _pointwise_convolution(node) if name in _CONVOLUTIONS else contraction(node)
        except (KeyError, TypeError, AttributeError):
            return None
        return None if read is None else (read, [node])
    given = bind(node)
    inner, dims = given["self"], given.get("dim")
    if operator_name(inner) != "mul" or not dims or given.get("dtype") is not None or len(inner.users) != 1:
        return None
    first, second = bind(inner)["self"], bind(inner)["other"]
    if not (is_tensor(first) and is_tensor(second)):
        return None
    dims = {place % rank(inner) for place in (dims if isinstance(dims, (list, tuple)) else [dims])}
    names = tuple(f"a{place}" for place in range(rank(inner)))
    kept = bool(given.get("keepdim"))  # as axes of extent 1, which no operand has
    output = tuple(f"one{place}" if place in dims else name for place, name in enumerate(names))
    output = output if kept else tuple(name for place, name in enumerate(output) if place not in dims)
    labels = tuple(names[len(names) - rank(operand) :] for operand in (first, second))
    return Contraction((first, second), labels, output), [node, inner]


_CONVOLUTIONS = frozenset({"conv1d", "conv2d", "conv3d"})


def _pointwise_convolution(node: Node) -> Contraction | None:
    """A convolution with windows of one position: Σ_k x[b, k, …]·w[n, k] + bias[n]."""
    given = bind(node)
    source, weight = given["input"], given["weight"]
    window, space = shape_of(weight)[2:], range(rank(weight) - 2)
    plain = all(monomial(size) == ONE for size in window) and given["groups"] == 1 and rank(source) == rank(weight)
    steps, padding = given["stride"], given["padding"]
    if not plain or any(step != 1 for step in steps) or isinstance(padding, str) or any(padding):
        return None
    places, ones = tuple(f"p{axis}" for axis in space), tuple(f"w{axis}" for axis in space)
    labels = (("b", "k", *places), ("n", "k", *ones))
    return Contraction((source, weight), labels, ("b", "n", *places), given["bias"], ("n",))


def as_sum(node: Node) -> tuple[Node, list[int], bool] | None:
    """(summand, axes, keepdim) of a sum over axes."""
    if node.op != "call_function" or operator_name(node) != "sum":
        return None
    given = bind(node)
    dims = given.get("dim")
    if not dims and dims != 0:
        return None
    places = [place % rank(given["self"]) for place in (dims if isinstance(dims, (list, tuple)) else [dims])]
    return given["self"], places, bool(given.get("keepdim"))


def is_tensor(value: object) -> bool:
    """Whether a value is a node that holds one tensor."""
    return isinstance(value, Node) and isinstance(value_of(value), Tensor)


def constant(node: object) -> float | None:
    """The number that a 0-dimensional tensor holds, where it is made in the graph."""
    if not isinstance(node, Node) or not isinstance(value_of(node), Tensor) or value_of(node).dim():
        return None
    for _ in range(4):
        name = operator_name(node) if node.op == "call_function" else ""
        given = bind(node) if name else {}
        if name in ("full", "full_like", "new_full"):
            return _number(given["fill_value"])
        if name == "scalar_tensor":
            return _number(given["s"])
        if name in ("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones"):
            return 0.0 if "zeros" in name else 1.0
        if name in ("to", "lift_fresh_copy", "clone", "alias", "detach", "_to_copy") and isinstance(
            given["self"], Node
        ):
            node = given["self"]
            continue
        break
    known = getattr(value_of(node), "constant", None)
    if node.op == "get_attr" and isinstance(known, Tensor):
        return float(known)
    return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


_ON_THE_WAY = frozenset(
    "mul multiply div add sub masked_fill where tanh dropout nan_to_num view reshape _unsafe_view flatten unflatten"
    " permute transpose mT t unsqueeze squeeze expand contiguous clone to _to_copy float double half bfloat16 type_as"
    " alias detach swapaxes movedim slice narrow".split()
)
# What mixes heads where one of its factors is a matrix, and the arguments that it may mix.
_MIXERS = {"linear": ("input",), "conv2d": ("input",), "einsum": ("tensors",), "matmul": ("self", "other")}


def leads_to_softmax(node: object, exponential: Node | None = None) -> bool:
    """Whether elementwise steps, views and a sum over heads lead back to a softmax, or to ``exponential``."""
    return _leads(node, lambda found: found is exponential or _is_softmax(found), mixers=1)


def _is_softmax(node: Node) -> bool:
    name = operator_name(node)
    if name in SOFTMAXES:
        return True
    source = node.args[0] if node.args else None
    if name == "exp":
        return isinstance(source, Node) and operator_name(source) in LOG_SOFTMAXES
    return name == "div" and isinstance(source, Node) and operator_name(source) == "exp"


def without_sum(softmax: Node) -> str:
    """Why the weights of a softmax are those of no attention, as far as can be told from who takes them."""
    takers: dict[str, None] = {}
    waiting, seen = list(softmax.users), set[Node]()
    while waiting and len(seen) < _MOST:
        user = waiting.pop(0)
        if user in seen:
            continue
        seen.add(user)
        if user.op == "call_function" and operator_name(user) in _ON_THE_WAY:
            waiting += user.users
        elif user.op == "output":
            takers["the output"] = None
        elif not isinstance(value_of(user), (int, SymInt)):  # a size
            takers[op_name(user)] = None
    if not takers:
        return "nothing takes the weights of this softmax"
    if _is_of_choices(softmax.args[0]):
        return f"this softmax runs over what topk chose, not over positions: its weights go to {', '.join(takers)}"
    return f"no sum of values weighted by this softmax is recognised: its weights go to {', '.join(takers)}"


def _is_of_choices(node: object) -> bool:
    """Whether views lead back to the values that ``topk`` chose."""
    for _ in range(8):
        if not isinstance(node, Node) or node.op != "call_function" or not node.args:
            return False
        if operator_name(node) == "topk":
            return True
        node = node.args[0] if operator_name(node) in ("getitem", *_ON_THE_WAY) else None
    return False


def leads_to_product(node: object) -> bool:
    """Whether elementwise steps and views lead back to a product."""
    return _leads(node, lambda found: read_product(found) is not None)


def leads_to_joined_products(node: object) -> bool:
    """Whether elementwise steps and views lead back to a concatenation of what leads back to products."""

    def joins(found: Node) -> bool:
        return operator_name(found) == "cat" and all(leads_to_product(part) for part in bind(found)["tensors"])

    return _leads(node, joins)


def _leads(node: object, is_end: Callable[[Node], bool], mixers: int = 0) -> bool:
    """Whether elementwise steps, views and so many ``mixers`` lead back from ``node`` to what ``is_end`` accepts."""
    waiting: list[tuple[object, int]] = [(node, mixers)]
    seen: set[tuple[Node, int]] = set()
    while waiting and len(seen) < _MOST:
        one, left = waiting.pop()
        if not isinstance(one, Node) or (one, left) in seen or one.op != "call_function":
            continue
        seen.add((one, left))
        if is_end(one):
            return True
        name = operator_name(one)
        if name in _ON_THE_WAY:
            waiting += [(source, left) for source in one.all_input_nodes]
        elif left and name in _MIXERS:
            waiting += [(source, left - 1) for source in _mixed_by(one, name)]
    return False


def _mixed_by(node: Node, name: str) -> list[Node]:
    """What ``node`` may mix the heads of: its arguments beside a matrix."""
    given = bind(node)
    found: list[Node] = []
    for argument in _MIXERS[name]:
        value = given[argument]
        found += [one for one in (value if isinstance(value, (list, tuple)) else [value]) if isinstance(one, Node)]
    flat = any(is_tensor(one) and rank(one) == 2 for one in found)
    return found if len(found) == 1 or flat else []
