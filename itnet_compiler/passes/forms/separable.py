"""The normal form of attention without a softmax: a chain of two products of activations, one summed over positions.

    y = Σ_c q·(Σ_j k·v)        linear: the sum over positions is the inner product
    y = Σ_j (Σ_c q·k)·m·v      quadratic: it is the outer one
    y = Σ_c q·cumsum_j(k·v)    causal

Both products have one form, o·(a·b) with o, a and b in a row; which of the two sums runs over positions says which
operand is which. Followed backwards in labels, as attention is (see ``attention``).
"""

from __future__ import annotations

from torch import SymInt
from torch.fx import Node

from ..axes import is_weight
from ..axes.sizes import monomial
from ..axes.sizes import product as product_of
from ..match import Match, Refusal, bind, rank, shape_of, value_of
from ..operators import operator_name
from .attention_steps import LONGEST, Leaf
from .contraction import Contraction
from .labels import Axes
from .mask_patterns import made_of, read
from .products import SOFTMAXES, is_tensor, leads_to_softmax, read_product
from .separable_normal import Form, Normalising

__all__ = ["find"]


def find(node: Node, match: Match) -> Form:
    """The sum whose last operation is ``node``: a product, or the division that normalises it.

    Raises:
        Refusal: with the reason, where there is none.
    """
    return _Finder(match).run(node)


class _Finder(Normalising):
    def __init__(self, match: Match) -> None:
        super().__init__(match)
        self.divided_by: list[SymInt] = []

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
            contracted = self._plain_product(inner, "the last operation is no sum of products")
        found = self._read(inner, contracted, axes)
        found.output = output
        if self.divided_by:
            count = product_of((self.tracer.extent(label), 1) for label in self.tracer.flat([found.keys]))
            same = monomial(self.divided_by[0]) == count
            self.match.require(same, "divided by another size than the number of positions summed", node)
            found.averaged = True
        if total is not None:
            self._normalise(found, *total)
        found.region = sorted(set(self.found.region))
        return found

    # ── The two products

    def _read(self, node: Node, product: Contraction, axes: Axes) -> Form:
        sides = self._factors(product, axes)
        outer = self._summed(product, sides)
        self.match.require(outer, "an outer product: nothing is summed", node)
        refusals = []
        for place in (1, 0):
            try:
                with self._restored_on_refusal():
                    return self._chain(sides[place], sides[1 - place], outer)
            except Refusal as refusal:
                self.past = None
                self.divided_by.clear()
                refusals.append(refusal)
        try:
            with self._restored_on_refusal():
                return self._weighted_sum(node, sides, outer)
        except Refusal as refusal:
            raise max([*refusals, refusal], key=lambda one: one.depth) from None

    def _plain_product(self, node: Node, reason: str) -> Contraction:
        product = self._product(node, reason)
        self.match.require(product.addend is None, "something is added to one of the two products", node)
        return product

    def _weighted_sum(self, node: Node, sides: list[tuple[Node, Axes]], keys: tuple[str, ...]) -> Form:
        """Σ_j k·v with nothing further: K is a factor of the source alone."""
        soft = any(leads_to_softmax(side) for side, _ in sides)
        self.match.require(not soft, "the weights come from a softmax", node)
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
            if self.past and operator_name(node) == "mul":
                return self._outer_product(node, axes, outside, outer)
            node, axes = self._one_back(node, axes, masks)
        else:
            self.match.refuse("the chain between the two products is too long", node)
        product = self._plain_product(node, "")
        learned = operator_name(node) == "linear" and any(is_weight(factor) for factor in product.operands)
        self.match.require(not learned, "one of the two products is a linear layer", node)
        sides = self._factors(product, axes)
        inner = self._summed(product, sides)
        for side in sides:
            self._note_roles(*side)
        holders = [set(outer) & set(self.tracer.flat(side_axes)) for _, side_axes in sides]
        self.match.require(not all(holders), "both factors of the inner product have the axis summed outside", node)
        place = 0 if holders[0] else 1
        self.match.require(holders[place] == set(self.tracer.flat([outer])), "the two products share no axis", node)
        leaves = self._leaf(*outside), self._leaf(*sides[place]), self._leaf(*sides[1 - place])
        if self.past and not inner:
            return self._linear(leaves, outer, (self.past[1],), [])
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
        assert self.past is not None
        return self._linear(leaves, outer, (self.past[1],), [])

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
        if self.past is not None:
            self._prove_positions((self.past[0],), key.node)
            self._require_each((self.past[0],), query)
        causal = self.past is not None
        form = Form(self.tracer, [], (), key, value, keys, query, channels, causal=causal, scale=self._scale())
        if not causal:
            self._take_softmax(form)
        return form

    def _take_softmax(self, form: Form) -> None:
        """A softmax of the keys over the positions summed becomes part of the sum."""
        node, axes = form.key.node, self.tracer.resolve(form.key.axes)
        given = bind(node) if node.op == "call_function" and operator_name(node) in SOFTMAXES else {}
        if not given or len(node.users) != 1 or value_of(given["self"]).dtype != value_of(node).dtype:
            return
        if self.tracer.flat([axes[int(given["dim"])]]) == self.tracer.flat([form.keys]):
            self._take(node)
            form.key, form.softmaxed = self._operand(given["self"], axes), True

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
        causal, mask, hides = self.past is not None, None, False
        queries = [
            label
            for label in self.tracer.flat(query.axes)
            if label not in (*self.tracer.flat(key.axes), *self.tracer.flat(value.axes))
        ]
        if self.past is not None:
            self.match.require(
                (queries, self.tracer.flat([keys])) == ([self.past[0]], (self.past[1],)),
                "the triangle does not lie over queries and keys",
                key.node,
            )
        for mask, hides in masks:
            if len(queries) == 1 and len(keys) == 1 and not causal and self._is_causal(mask, hides, queries[0], keys):
                self.found.region += made_of(mask.node)
                causal, mask, hides = True, None, False
        return Form(
            self.tracer,
            [],
            (),
            key,
            value,
            keys,
            query,
            channels,
            mask,
            hides=hides,
            causal=causal,
            scale=self._scale(),
        )

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
            self.match.require(self.past is None and len(axes[place]) == 1, "a second cumulative sum", node)
            self._take(node)
            earlier = self.tracer.label(shape_of(node)[place])
            self.past = (axes[place][0], earlier[0])
            return given["self"], (*axes[:place], earlier, *axes[place + 1 :])
        if name == "tril":
            single = given["diagonal"] == 0 and len(axes[-1]) == len(axes[-2]) == 1
            self.match.require(single and self.past is None, "another triangle than that of past positions", node)
            self._take(node)
            self.past = (axes[-2][0], axes[-1][0])
            return given["self"], axes
        if name == "div" and isinstance(given["other"], Node) and isinstance(value_of(given["other"]), SymInt):
            self.match.require(given.get("rounding_mode") is None and not self.divided_by, "divided twice", node)
            self._take(node)
            self.divided_by.append(value_of(given["other"]))
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
        return self._operand(node, axes, scaled="query")

    def _scale(self) -> float:
        scale = 1.0
        for step, leaf in self.found.steps:
            if leaf is None and step.kind == "times":
                scale *= float(step.number or 0.0)
        return scale

    # ── What the labels count

    def _prove_positions(self, labels: tuple[str, ...], node: Node) -> None:
        self.match.require(self._are_positions(labels), "the axis summed over is not proven to hold positions", node)

    def _require_data(self, *leaves: Leaf) -> None:
        for leaf in leaves:
            self.match.require(not is_weight(leaf.node), "a factor that does not depend on the input", leaf.node)

    def _require_each(self, labels: tuple[str, ...], *leaves: Leaf) -> None:
        wanted = set(self.tracer.flat([labels]))
        for leaf in leaves:
            self.match.require(wanted <= set(self.tracer.flat(leaf.axes)), "a factor lacks positions", leaf.node)


def _leads(node: object) -> bool:
    return is_tensor(node) and read_product(node) is not None
