"""The normal form of attention without a softmax: a chain of two products of activations, one summed over positions.

    y = Σ_c q·(Σ_j k·v)        linear: the sum over positions is the inner product
    y = Σ_j (Σ_c q·k)·m·v      quadratic: it is the outer one
    y = Σ_c q·cumsum_j(k·v)    causal

Both products have one form, o·(a·b) with o, a and b in a row; which of the two sums runs over positions says which
operand is which. Followed backwards in labels, as attention is (see ``attention_form``).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch.fx import Node

from .attention_steps import LONGEST, Chains, Leaf
from .axes import AxisRole, is_weight, roles_of
from .contraction import Contraction
from .labels import Axes, Tracer
from .mask_patterns import made_of, read
from .match import Match, Refusal, bind, rank, shape_of, value_of
from .operators import operator_name
from .products import as_sum, is_tensor, leads_to_softmax, read_product

__all__ = ["Form", "find"]


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
    causal: bool = False
    normalised: bool = False
    eps: float = 0.0
    clamped: bool = False
    scale: float = 1.0


def find(node: Node, match: Match) -> Form:
    """The sum whose last operation is ``node``: a product, or the division that normalises it.

    Raises:
        Refusal: with the reason, where there is none.
    """
    return _Finder(match).run(node)


class _Finder(Chains):
    def __init__(self, match: Match) -> None:
        super().__init__(match)
        self._roles: dict[str, set[AxisRole]] = {}
        self._past: tuple[str, str] | None = None

    def run(self, node: Node) -> Form:
        output, total = self.tracer.fresh(shape_of(node)), None
        inner, axes = node, output
        if operator_name(node) in ("div", "mul"):
            inner, axes, total = self._divided(node, output)
        product = read_product(inner)
        if product is not None and len(product[0].operands) == 3:
            contracted, total = self._third_factor(product[0], axes)
            self._take(inner)
        else:
            contracted = self._product(inner, "the last operation is no sum of products")
        found = self._read(inner, contracted, axes)
        found.output = output
        if total is not None:
            self._normalise(found, *total)
        found.region = sorted(set(self.found.region))
        return found

    # ── The two products

    def _read(self, node: Node, product: Contraction, axes: Axes) -> Form:
        sides = self._factors(product, axes)
        outer = self._summed(product, sides)
        self.match.require(outer, "an outer product: nothing is summed", node)
        self.match.require(
            not any(leads_to_softmax(side) for side, _ in sides), "the weights come from a softmax", node
        )
        refusals = []
        for place in (1, 0):
            try:
                with self._restored_on_refusal():
                    return self._chain(sides[place], sides[1 - place], outer)
            except Refusal as refusal:
                self._past = None
                refusals.append(refusal)
        try:
            with self._restored_on_refusal():
                return self._weighted_sum(node, sides, outer)
        except Refusal as refusal:
            raise max([*refusals, refusal], key=lambda one: one.depth) from None

    def _weighted_sum(self, node: Node, sides: list[tuple[Node, Axes]], keys: tuple[str, ...]) -> Form:
        """Σ_j k·v with nothing further: K is a factor of the source alone."""
        for side in sides:
            self._note_roles(*side)
        self._prove_positions(keys, node)
        key, value = (self._leaf(*side) for side in sides)
        self._require_data(key, value)
        return Form(self.tracer, [], (), key, value, keys, scale=self._scale())

    def _chain(self, middle: tuple[Node, Axes], outside: tuple[Node, Axes], outer: tuple[str, ...]) -> Form:
        """o·(a·b): the sum over ``outer`` labels of o = ``outside`` and what ``middle`` leads back to."""
        node, axes = middle
        self._note_roles(node, axes)
        self._note_roles(*outside)
        masks: list[tuple[Leaf, bool]] = []
        for _ in range(LONGEST):
            axes = self.tracer.resolve(axes)
            read_ = read_product(node)
            if read_ is not None and len(read_[0].operands) == 2:
                break
            if self._past and operator_name(node) == "mul":
                return self._outer_product(node, axes, outside, outer)
            node, axes = self._one_back(node, axes, masks)
        else:
            self.match.refuse("the chain between the two products is too long", node)
        product = self._product(node, "")
        sides = self._factors(product, axes)
        inner = self._summed(product, sides)
        for side in sides:
            self._note_roles(*side)
        holders = [set(outer) & set(self.tracer.flat(side_axes)) for _, side_axes in sides]
        self.match.require(not all(holders), "both factors of the inner product have the axis summed outside", node)
        place = 0 if holders[0] else 1
        self.match.require(holders[place] == set(self.tracer.flat([outer])), "the two products share no axis", node)
        leaves = self._leaf(*outside), self._leaf(*sides[place]), self._leaf(*sides[1 - place])
        if self._past and not inner:
            return self._linear(leaves, outer, (self._past[1],), [])
        self.match.require(inner, "the inner product sums nothing", node)
        if not masks and self._are_positions(inner):
            return self._linear(leaves, outer, inner, masks)
        self._prove_positions(outer, node)
        return self._quadratic(leaves, outer, inner, masks)

    def _outer_product(self, node: Node, axes: Axes, outside: tuple[Node, Axes], outer: tuple[str, ...]) -> Form:
        """k·v, not summed, of a cumulative sum: written as a product of unsqueezed tensors."""
        given = bind(node)
        first, second = given["self"], given["other"]
        self.match.require(is_tensor(first) and is_tensor(second), "a number instead of keys or values", node)
        first_axes, second_axes = self.tracer.aligned(first, axes), self.tracer.aligned(second, axes)
        self.match.require(first_axes is not None and second_axes is not None, "the product is broadcast", node)
        assert first_axes is not None
        assert second_axes is not None
        self._take(node)
        sides = [(first, first_axes), (second, second_axes)]
        wanted = set(self.tracer.flat([outer]))
        held = [wanted & set(self.tracer.flat(side_axes)) for _, side_axes in sides]
        self.match.require(held[0] != held[1] and wanted in held, "no factor alone has the axis summed outside", node)
        place = held.index(wanted)
        leaves = self._leaf(*outside), self._leaf(*sides[place]), self._leaf(*sides[1 - place])
        assert self._past is not None
        return self._linear(leaves, outer, (self._past[1],), [])

    def _linear(
        self,
        leaves: tuple[Leaf, Leaf, Leaf],
        channels: tuple[str, ...],
        keys: tuple[str, ...],
        masks: list[tuple[Leaf, bool]],
    ) -> Form:
        query, key, value = leaves
        self.match.require(not masks, "the sum over positions is masked", key.node)
        self._require_data(key, value)
        self._require_each(keys, key, value)
        if self._past is not None:
            self._prove_positions((self._past[0],), key.node)
            self._require_each((self._past[0],), query)
        causal = self._past is not None
        return Form(self.tracer, [], (), key, value, keys, query, channels, causal=causal, scale=self._scale())

    def _quadratic(
        self,
        leaves: tuple[Leaf, Leaf, Leaf],
        keys: tuple[str, ...],
        channels: tuple[str, ...],
        masks: list[tuple[Leaf, bool]],
    ) -> Form:
        value, key, query = leaves
        self._require_data(key, value)
        self.match.require(len(masks) <= 1, "more than one mask", key.node)
        causal, mask, hides = self._past is not None, None, False
        queries = [
            label
            for label in self.tracer.flat(query.axes)
            if label not in (*self.tracer.flat(key.axes), *self.tracer.flat(value.axes))
        ]
        if self._past is not None:
            self.match.require(
                (queries, self.tracer.flat([keys])) == ([self._past[0]], (self._past[1],)),
                "the triangle does not lie over queries and keys",
                key.node,
            )
        for mask, hides in masks:
            if len(queries) == 1 and len(keys) == 1 and not causal and self._is_causal(mask, hides, queries[0], keys):
                self.found.region += made_of(mask.node)
                causal, mask, hides = True, None, False
        return Form(self.tracer, [], (), key, value, keys, query, channels, mask, hides, causal, scale=self._scale())

    def _is_causal(self, mask: Leaf, hides: bool, query: str, keys: tuple[str, ...]) -> bool:
        pattern = read(mask.node, mask.axes, self.tracer)
        if pattern is None or {float(pattern.inside), float(pattern.outside)} != {0.0, 1.0}:
            return False
        seen = pattern.where(lambda value: bool(value) is not hides)
        return seen is not None and seen.is_causal(query, keys[0])

    def _one_back(self, node: Node, axes: Axes, masks: list[tuple[Leaf, bool]]) -> tuple[Node, Axes]:
        """One step back on the chain between the products."""
        name, given = operator_name(node), bind(node) if node.op == "call_function" else {}
        if name == "cumsum":
            place = int(self.match.literal(given["dim"], "the axis summed over")) % rank(node)
            self.match.require(self._past is None and len(axes[place]) == 1, "a second cumulative sum", node)
            self._take(node)
            earlier = self.tracer.label(shape_of(node)[place])
            self._past = (axes[place][0], earlier[0])
            return given["self"], (*axes[:place], earlier, *axes[place + 1 :])
        if name == "tril":
            single = given["diagonal"] == 0 and len(axes[-1]) == len(axes[-2]) == 1
            self.match.require(single and self._past is None, "another triangle than that of past positions", node)
            self._take(node)
            self._past = (axes[-2][0], axes[-1][0])
            return given["self"], axes
        if (step := self._back(node, axes)) is not None:
            return step
        done = len(self.found.steps)
        source = self._step(node, axes, self.found.steps, "scores", lambda one: _leads(one))
        for step_, leaf in self.found.steps[: len(self.found.steps) - done]:
            if leaf is None:
                self.match.require(step_.kind == "times", f"{step_} between the two products", node)
                continue
            zero = step_.kind == "times" or step_.number == 0.0
            self.match.require(zero and step_.kind in ("times", "fill", "keep"), f"{step_.kind} in between", node)
            masks.append((leaf, step_.kind == "fill"))
        return source

    def _leaf(self, node: Node, axes: Axes) -> Leaf:
        return self._operand(node, axes, scaled=True)

    def _scale(self) -> float:
        scale = 1.0
        for step, leaf in self.found.steps:
            if leaf is None and step.kind == "times":
                scale *= float(step.number or 0.0)
        return scale

    # ── What the labels count

    def _note_roles(self, node: Node, axes: Axes) -> None:
        for axis, role in zip(axes, roles_of(node), strict=False):
            for label in self.tracer.flat([axis]) if len(axis) == 1 else ():
                self._roles.setdefault(label, set()).add(role)

    def _are_positions(self, labels: tuple[str, ...]) -> bool:
        return all(AxisRole.POSITION in self._roles.get(label, ()) for label in self.tracer.flat([labels]))

    def _prove_positions(self, labels: tuple[str, ...], node: Node) -> None:
        self.match.require(self._are_positions(labels), "the axis summed over is not proven to hold positions", node)

    def _require_data(self, *leaves: Leaf) -> None:
        for leaf in leaves:
            self.match.require(not is_weight(leaf.node), "a factor that does not depend on the input", leaf.node)

    def _require_each(self, labels: tuple[str, ...], *leaves: Leaf) -> None:
        wanted = set(self.tracer.flat([labels]))
        for leaf in leaves:
            self.match.require(wanted <= set(self.tracer.flat(leaf.axes)), "a factor lacks positions", leaf.node)

    # ── The sum that normalises

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
        self.match.require(form.query is not None and form.mask is None and form.scale == 1.0, "divides by more", node)
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
                self._past is not None and axes[place] == (self._past[0],), "sums along another axis", node
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


def _leads(node: object) -> bool:
    return is_tensor(node) and read_product(node) is not None
