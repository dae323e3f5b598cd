"""What linear attention is divided by: how it is written, and the proof that it is the sum of the weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from ..match import Refusal, bind, rank, shape_of, value_of
from ..operators import operator_name
from .attention_steps import LONGEST, Chains, Leaf
from .contraction import Contraction
from .labels import Axes, Tracer
from .products import as_sum, is_tensor

__all__ = ["Form", "Normalising"]


@dataclass
class Form:
    """A sum of values weighted by products of features, in labels that ``tracer`` resolves; see ``ir.Separable``.

    Attributes:
        region: The nodes that compute it.
        keys: Labels summed over.
        channels: Labels that the product of queries and keys sums over.
    """

    tracer: Tracer
    region: list[Node]
    output: Axes
    key: Leaf
    value: Leaf
    keys: tuple[str, ...]
    query: Leaf | None = None
    channels: tuple[str, ...] = ()
    mask: Leaf | None = None
    hides: bool = False
    softmaxed: bool = False
    causal: bool = False
    normalised: bool = False
    eps: float = 0.0
    clamped: bool = False
    scale: float = 1.0
    averaged: bool = False


class Normalising(Chains):
    """Reads y / Z, y·(1/Z) and Σ q·M·(1/Z).

    Attributes:
        past: The labels of a later and an earlier position, where a cumulative sum or a triangle was met.
    """

    past: tuple[str, str] | None = None

    def _divided(self, node: Node, axes: Axes) -> tuple[Node, Axes, tuple[Node, Axes]]:
        """y / Z or y·(1/Z): the product, its axes, and Z with its axes."""
        given = bind(node)
        first, second = given["self"], given["other"]
        self.match.require(is_tensor(first) and is_tensor(second), "no quotient of two tensors", node)
        self.match.require(given.get("rounding_mode") is None, "a rounded quotient", node)
        self._take(node)
        if operator_name(node) == "mul":
            first, second = (second, first) if _is_inverse(first) else (first, second)
            second, second_axes = self._inverted(second, self._aligned(second, axes))
        else:
            second_axes = self._aligned(second, axes)
        top, top_axes = self._through_views(first, self._aligned(first, axes))
        return top, top_axes, (second, second_axes)

    def _aligned(self, node: Node, axes: Axes) -> Axes:
        found = self.tracer.aligned(node, axes)
        self.match.require(found is not None, "an operand does not fit", node)
        assert found is not None
        return found

    def _third_factor(self, product: Contraction, axes: Axes) -> tuple[Contraction, tuple[Node, Axes]]:
        """Of Σ q·M·z with z = 1/Z: the product of the other two, and Z with its axes."""
        places = dict(zip(product.output, axes, strict=True))
        for place, (node, names) in enumerate(zip(product.operands, product.labels, strict=True)):
            if set(names) <= set(product.output) and len(set(names)) == len(names):
                rest = [other for other in range(3) if other != place]
                two = Contraction(
                    tuple(product.operands[other] for other in rest),
                    tuple(product.labels[other] for other in rest),
                    product.output,
                )
                return two, self._inverted(node, tuple(places[name] for name in names))
        return self.match.refuse("a product of three factors that are all summed")

    def _inverted(self, node: Node, axes: Axes) -> tuple[Node, Axes]:
        """Z of 1/Z."""
        for _ in range(LONGEST):
            name, given = operator_name(node), bind(node) if node.op == "call_function" else {}
            is_one = name == "mul" and given["other"] == 1
            inverse = name == "reciprocal" or (name == "pow" and given.get("exponent") == -1)
            if not inverse and not is_one:
                moved = self.tracer.back(node, axes)
                self.match.require(moved is not None, "multiplied by something else than a reciprocal", node)
                assert moved is not None
                self._take(node)
                node, axes = moved
                continue
            self._take(node)
            node = given["self"]
            if inverse:
                return node, axes
        return self.match.refuse("the chain of the normalising sum is too long", node)

    def _normalise(self, form: Form, node: Node, axes: Axes) -> None:
        """Prove that a divisor is Σ_j K, plus or at least a number."""
        self.match.require(
            form.query is not None and form.mask is None and form.scale == 1.0 and not form.averaged,
            "divides by more",
            node,
        )
        assert form.query is not None
        for _ in range(LONGEST):
            name, given = operator_name(node), bind(node) if node.op == "call_function" else {}
            number = given.get("other", given.get("min"))
            if name in ("add", "clamp_min", "clamp") and isinstance(number, (int, float)):
                plain = given.get("max") is None and given.get("alpha", 1) == 1 and not form.eps
                self.match.require(plain, "the sum that normalises is changed twice", node)
                form.eps, form.clamped = float(number), name != "add"
                self._take(node)
                node = given["self"]
                continue
            moved = self.tracer.back(node, axes)
            if moved is None:
                break
            self._take(node)
            node, axes = moved
        same = _Same(form, self.tracer)
        product = self._product(node, f"divides by {operator_name(node)}, which is no sum of the weights")
        sides = self._factors(product, self.tracer.resolve(axes))
        for place in (0, 1):
            try:
                with self._restored_on_refusal():
                    query = self._operand(*sides[place])
                    self.match.require(same.leaf(query, form.query), "not the queries", query.node)
                    self._sum_of_keys(*sides[1 - place], same, form)
                    form.normalised = True
                    return
            except Refusal:
                same = _Same(form, self.tracer)
        self.match.refuse("the divisor is not proven to be the sum of the weights", node)

    def _sum_of_keys(self, node: Node, axes: Axes, same: _Same, form: Form) -> None:
        """Σ_j k, or its cumulative sum where the weights are causal."""
        node, axes = self._through_views(node, axes)
        if form.causal:
            self.match.require(operator_name(node) == "cumsum", "no cumulative sum of the keys", node)
            place = int(bind(node)["dim"]) % rank(node)
            source = bind(node)["self"]
            later = self.tracer.label(shape_of(node)[place])
            self.match.require(
                self.past is not None and axes[place] == (self.past[0],), "sums along another axis", node
            )
            own = (*axes[:place], later, *axes[place + 1 :])
        else:
            summed = as_sum(node)
            self.match.require(summed is not None, "no sum of the keys", node)
            assert summed is not None
            source, places, keepdim = summed
            left = iter(axes if not keepdim else [axis for place, axis in enumerate(axes) if place not in places])
            own = tuple(
                self.tracer.label(size) if place in places else next(left)
                for place, size in enumerate(shape_of(source))
            )
        self._take(node)
        self.match.require(value_of(node).dtype == value_of(source).dtype, "sums in another dtype", node)
        key = self._operand(source, own)
        self.match.require(same.leaf(key, form.key), "a sum of something else than the keys", key.node)


class _Same:
    """Whether labels of a second reading are those of the first: the same node, and one map of labels for all."""

    def __init__(self, form: Form, tracer: Tracer) -> None:
        self._tracer = tracer
        self._inner = {*tracer.flat([form.keys]), *tracer.flat([form.channels])}
        self._map: dict[str, str] = {}

    def leaf(self, second: Leaf, first: Leaf) -> bool:
        """Whether both leaves are one value read alike; notes which inner labels are one."""
        ours, theirs = self._tracer.resolve(first.axes), self._tracer.resolve(second.axes)
        if second.node is not first.node or [len(axis) for axis in ours] != [len(axis) for axis in theirs]:
            return False
        for mine, other in zip(self._tracer.flat(ours), self._tracer.flat(theirs), strict=True):
            fits = self._map.setdefault(other, mine) == mine if mine in self._inner else other == mine
            if not fits:
                return False
        return True


def _is_inverse(node: object) -> bool:
    """Whether views lead back to a reciprocal."""
    for _ in range(LONGEST):
        if not isinstance(node, Node) or node.op != "call_function":
            return False
        if operator_name(node) in ("reciprocal", "pow"):
            return True
        if operator_name(node) not in _PASSED:
            return False
        node = node.args[0]
    return False


_PASSED = frozenset("mul unsqueeze view reshape permute transpose expand to".split())
