"""The normal form of attention: a sum of values weighted by a softmax of products, found backwards from that sum.

    y = Σ_j after(softmax_j(steps(Σ_c q·k)))·v

Three chains are followed, each backwards and in labels (see ``labels``): the weights, from the sum to the softmax;
the scores, from the softmax to the product; the operands, from either product to what is not a view. Whatever lies on
a chain is a view, a cast, or one elementwise step.
"""

from __future__ import annotations

from itertools import product as pairs
from typing import Any

from torch.fx import Node

from ...ir.steps import Step, renamed
from ..match import Match, Refusal, bind, shape_of
from ..operators import operator_name
from .attention_sinks import Sinks
from .attention_steps import LONGEST, Found, Leaf
from .contraction import Contraction
from .labels import Axes
from .products import LOG_SOFTMAXES, SOFTMAXES, as_sum, is_tensor, leads_to_product, leads_to_softmax, read_product

__all__ = ["find"]


def find(node: Node, match: Match, given: Node | None = None) -> Found:
    """The attention whose last operation is ``node``: the sum over values, or the division that normalises it.

    Scores are followed back to the product of queries and keys, or to ``given``, which is among them.

    Raises:
        Refusal: with the reason, where there is none.
    """
    finder = _Finder(match)
    finder.given = given
    return finder.run(node)


class _Finder(Sinks):
    """Finds the softmax and both products."""

    given: Node | None = None
    _any_scores = False

    def run(self, node: Node) -> Found:
        axes = self.found.output = self.tracer.fresh(shape_of(node))
        if operator_name(node) != "mul":
            return self._unscaled(node, axes)
        source, axes, gate = self._scaled(node, axes)
        found = self._unscaled(source, axes)
        self._take_sink(gate)
        return found

    def _unscaled(self, node: Node, axes: Axes) -> Found:
        found = self.found
        exponential: Node | None = None
        if operator_name(node) == "div":
            node, axes, exponential = self._normalised_afterwards(node, axes)
        product = self._product(node, "the last operation is no sum of products")
        places = [place for place in (0, 1) if leads_to_softmax(product.operands[place], exponential)]
        self.match.require(places, "neither factor comes from a softmax", node)
        depth = self.match.depth
        for self._any_scores, place in pairs((False, True), places):
            self.match.depth = depth
            try:
                with self._restored_on_refusal():
                    self._weighted_sum(product, axes, place, exponential)
                    return found
            except Refusal as refusal:
                last = refusal
        raise last

    def _weighted_sum(self, product: Contraction, axes: Axes, place: int, exponential: Node | None) -> None:
        found = self.found
        sides = self._factors(product, axes)
        (weights, weights_axes), (value, value_axes) = sides[place], sides[1 - place]
        summed = self._summed(product, sides)
        scores, scores_axes = self._weights(weights, weights_axes, exponential, summed)
        whole = (self._dropped.both,) if self._dropped else summed
        over, wanted = (set(self.tracer.flat([labels])) for labels in (found.keys, whole))
        self.match.require(
            over == wanted,
            "the softmax does not run over the positions that are summed: its weights are normalised over another axis",
            weights,
        )
        for side in ((weights, weights_axes), (value, value_axes), (scores, scores_axes)):
            self._note_roles(*side)
        self._scores(scores, scores_axes, value_axes)
        found.value = self._operand(value, value_axes)

    def _normalised_afterwards(self, node: Node, axes: Axes) -> tuple[Node, Axes, Node]:
        """(Σ_j e·v) / Σ_j e: the product, its axes and e."""
        given = bind(node)
        top, bottom = given["self"], given["other"]
        tensors = is_tensor(top) and is_tensor(bottom) and given.get("rounding_mode") is None
        self.match.require(tensors, "divides by a number", node)
        self._take(node)
        top_axes = self.tracer.aligned(top, axes)
        total = self.tracer.aligned(bottom, axes)
        self.match.require(top_axes is not None and total is not None, "divides by something of another shape", node)
        assert top_axes is not None and total is not None
        top, top_axes = self._through_views(top, top_axes)
        bottom, total = self._through_views(bottom, total)
        summed = as_sum(bottom)
        self.match.require(summed is not None, f"divides by {operator_name(bottom)}, which is no sum", bottom)
        assert summed is not None
        exponential, places, keepdim = summed
        self._take(bottom)
        self.match.require(operator_name(exponential) == "exp", "divides by a sum of something else than exp", bottom)
        self._denominator = (exponential, places, keepdim, total)
        return top, top_axes, exponential

    def _weights(self, node: Node, axes: Axes, exponential: Node | None, summed: tuple[str, ...]) -> tuple[Node, Axes]:
        """Follow the weights to the softmax; the scores and their axes."""
        found = self.found
        for _ in range(LONGEST):
            axes, keys = self.tracer.resolve(axes), set(self.tracer.flat([summed]))
            if self._dropped is None:
                found.chain.append((node, axes, len(found.after)))
            if node is exponential:
                return self._unnormalised(node, axes)
            name, given = operator_name(node), bind(node) if node.op == "call_function" else {}
            if name in SOFTMAXES:
                self._take(node)
                self._note_width(node, given)
                return self._softmax(given["self"], given["dim"], axes)
            if name == "exp" and operator_name(given["self"]) in LOG_SOFTMAXES:
                self._take(node)
                inner = given["self"]
                self._take(inner)
                self._note_width(inner, bind(inner))
                return self._softmax(bind(inner)["self"], bind(inner)["dim"], axes)
            if name == "div" and (core := self._quotient(node, given, axes)) is not None:
                return core
            step = self._back(node, axes) or self._mixed(node, axes, found.after, keys, leads_to_softmax)
            if step is None and name == "div":
                step = self._normalised_again(node, given, axes, keys)
            if step is None and name in ("slice", "narrow"):
                step = self._without_sink(node, given, axes, keys)
            node, axes = step or self._step(node, axes, found.after, "weights", leads_to_softmax)
        return self.match.refuse("the chain of weights is too long", node)

    def _softmax(self, scores: Node, dim: int, axes: Axes) -> tuple[Node, Axes]:
        self.found.weights = axes
        self.scored = (scores, axes)
        self.found.keys = axes[dim % len(axes)]
        self.match.require(self.found.keys, "the softmax runs over an axis of extent 1", scores)
        return scores, axes

    def _quotient(self, node: Node, given: dict[str, Any], axes: Axes) -> tuple[Node, Axes] | None:
        """exp(s) / Σ exp(s): a softmax written out; None where it is another division."""
        bottom = given["other"]
        if not isinstance(bottom, Node) or given.get("rounding_mode") is not None:
            return None
        total_axes = self.tracer.aligned(bottom, axes)
        if total_axes is None:
            return None
        views: list[Node] = []
        total, total_axes = self._through_views(bottom, total_axes, views)
        summed = as_sum(total)
        if summed is None or summed[0] is not given["self"] or operator_name(summed[0]) != "exp":
            return None
        exponential, places, keepdim = summed
        for taken in (node, *views, total):
            self._take(taken)
        return self._sum_of_exponentials(exponential, axes, places, keepdim, total_axes)

    def _unnormalised(self, exponential: Node, axes: Axes) -> tuple[Node, Axes]:
        same, places, keepdim, total = self._denominator
        self.match.require(same is exponential, "divides by the sum of another exponential", exponential)
        return self._sum_of_exponentials(exponential, axes, places, keepdim, total)

    def _sum_of_exponentials(
        self, exponential: Node, axes: Axes, places: list[int], keepdim: bool, total: Axes
    ) -> tuple[Node, Axes]:
        """Check that the denominator has the labels of the weights but for those summed over."""
        axes, total = self.tracer.resolve(axes), self.tracer.resolve(total)
        kept = tuple(() if place in places else axis for place, axis in enumerate(axes))
        wanted = kept if keepdim else tuple(axis for place, axis in enumerate(axes) if place not in places)
        self.match.require(total == wanted, "the sum that normalises runs over another axis", exponential)
        self._take(exponential)
        self.found.weights = axes
        self.found.keys = tuple(label for place in places for label in axes[place])
        self.match.require(self.found.keys, "the softmax runs over an axis of extent 1", exponential)
        return bind(exponential)["self"], axes

    def _scores(self, node: Node, axes: Axes, value: Axes) -> None:
        found = self.found
        for _ in range(LONGEST):
            node, axes = self._as_written(node), self.tracer.resolve(axes)
            if node is self.given:
                self._given_scores(node, axes)
                return
            found.scores.append(node)
            try:
                with self._restored_on_refusal():
                    step = self._scores_back(node, axes, value)
            except Refusal as refusal:
                if not self._any_scores:
                    raise
                self._other_scores(node, axes, refusal)
                return
            if step is None:
                return
            node, axes = step
        self.match.refuse("the chain of scores is too long", node)

    def _scores_back(self, node: Node, axes: Axes, value: Axes) -> tuple[Node, Axes] | None:
        """One step back on the chain of scores; None at its end, the product of queries and keys."""
        if self._added_in_part(node, axes):
            return node, axes
        if self._dropped is not None and operator_name(node) == "cat":
            return self._with_sink(node, bind(node), axes)
        read = read_product(node)
        if read is not None and len(read[0].operands) == 2:
            if not self._mixed_scores(node, axes, value):
                self._pairs(node, read[0], axes)
            return None
        return self._back(node, axes) or self._step(node, axes, self.found.steps, "scores", leads_to_product)

    def _other_scores(self, node: Node, axes: Axes, refusal: Refusal) -> None:
        """Scores that are made in another way than by a product: given, where they are scores of positions."""
        proven = self._are_positions(self.found.keys)
        reason = f"{refusal.reason}, and the axis of the softmax is not proven to hold positions"
        self.match.require(proven, reason, refusal.node)
        self._given_scores(node, axes)

    def _given_scores(self, node: Node, axes: Axes) -> None:
        """Scores that are taken as they are: for each pair, or for each position where all queries have the same."""
        self.match.require(self._dropped is None, "the weights of some positions are dropped", node)
        whole = self.tracer.aligned(node, axes)
        self.match.require(whole == self.tracer.resolve(axes), "scores that are used elsewhere are broadcast", node)
        self.found.given = Leaf(node, axes)
        self.found.steps.insert(0, (Step("plus", role="scores"), self.found.given))

    def _mixed_scores(self, node: Node, axes: Axes, value: Axes) -> bool:
        """Go on behind a sum over heads; False where the product is rather one of queries and keys."""
        keys = set(self.tracer.flat([self.found.keys]))
        after = [step for step, _ in self.found.after]
        queries = set(self.tracer.flat(axes)) - keys - set(renamed(self.tracer.flat(value), after, back=True))
        try:
            with self._restored_on_refusal():
                step = self._mixed(node, axes, self.found.steps, keys | queries, leads_to_product) if queries else None
                if step is not None:
                    self._scores(*step, value)
                return step is not None
        except Refusal:
            return False

    def _pairs(self, node: Node, product: Contraction, axes: Axes) -> None:
        """The product of queries and keys: the factor with the labels of the keys, and the one without."""
        found = self.found
        self.match.require(self._dropped is None, "the weights of some positions are dropped", node)
        self._product(node, "")
        self._add_addend(node, product, axes, found.steps)
        sides = self._factors(product, axes)
        channels = self._summed(product, sides)
        self.match.require(channels, "the scores are an outer product: nothing is summed", node)
        keys = set(self.tracer.flat([found.keys]))
        held = [set(self.tracer.flat(side_axes)) & keys for _, side_axes in sides]
        self.match.require(any(held), "neither factor of the scores depends on the positions summed over", node)
        self.match.require(not all(held), "both factors of the scores depend on the positions summed over", node)
        key = 0 if held[0] else 1
        self.match.require(held[key] == keys, "the keys lack some of the positions that the softmax runs over", node)
        found.query = self._operand(*sides[1 - key], scaled="query")
        found.key = self._operand(*sides[key], scaled="key")
