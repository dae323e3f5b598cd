"""Rule ``joined_attention``: one softmax whose weights are cut into parts, each for values of its own, and summed.

    w = softmax(cat([s_1, s_2, …]));  y = w[…, :S_1] @ v_1 + w[…, S_1:] @ v_2 + …

Followed backwards in labels from the last addition, as attention is (see ``forms.attention``). The parts are proven to
be the whole axis of the softmax, each place once, from the extents in the graph.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import sympy
from torch import SymInt
from torch.fx import Node

from ...ir.domain import Keys
from ...ir.joined_attention import JoinedAttention
from ...ir.kernel import Spec
from ..forms.attention_steps import LONGEST, Chains, Leaf
from ..forms.labels import Axes, letters
from ..forms.memory_order import memory_order
from ..forms.products import SOFTMAXES, is_tensor, leads_to_joined_products, leads_to_softmax, read_product
from ..match import Match, Proposal, Unrelated, bind, propose, rank, rule, shape_of, value_of
from ..operators import operator_name

__all__ = ["joined_attention"]

_SPLITS = frozenset(
    "split split_with_sizes chunk tensor_split unsafe_split unsafe_split_with_sizes unsafe_chunk".split()
)
_SLICES = frozenset({"slice", "narrow"})
_VIEWS = frozenset("view reshape permute transpose contiguous to expand unsqueeze squeeze".split())


@rule("joined_attention", "aten.add.Tensor", "aten.add_.Tensor")
def joined_attention(node: Node, match: Match) -> Proposal:
    """y = Σ_p Σ_(j of part p) softmax(s)_j·v_p."""
    last = bind(node)["other"]
    if not isinstance(last, Node) or not any(_is_part(factor) for factor in _factors_of(last)):
        raise Unrelated("no sum of products with parts of weights", node, 0)
    finder = _Finder(match)
    parts = finder.parts(node)
    scores, scores_axes, rate = finder.softmax(parts)
    names = finder.names(parts, scores_axes)
    values = [part.value for part in parts]
    dtypes = {value_of(one).dtype for one in (node, *(leaf.node for leaf in values))}
    match.require(len(dtypes) == 1, "the result has another dtype than the values", node)
    region = sorted(set(finder.found.region))
    operands = dict(zip(("scores", *_roles(len(values))), (scores, *(leaf.node for leaf in values)), strict=True))
    for role, leaf in operands.items():
        match.require(leaf not in region, f"the {role} are part of the attention itself", leaf)
    weights = finder.used_elsewhere(node, scores_axes, rate)
    text = finder.tracer.text
    kernel = JoinedAttention(
        scores=text(scores_axes, names),
        values=tuple(text(leaf.axes, names) for leaf in values),
        output=text(finder.found.output, names),
        sizes=finder.tracer.sizes([scores_axes, finder.found.output, *(leaf.axes for leaf in values)], names),
        dropout=rate,
        wide=finder.found.wide,
        returns_weights=weights is not None,
        memory=memory_order(node),
    )
    spec = Spec(kernel, Keys(), "attention", tuple(operands))
    outputs = (node,) if weights is None else (node, weights)
    return propose(spec, operands, *region, outputs=outputs)


def _roles(count: int) -> tuple[str, ...]:
    return tuple("value" if place == 0 else f"value{place + 1}" for place in range(count))


def _factors_of(node: Node) -> tuple[Node, ...]:
    read = read_product(node)
    return () if read is None else read[0].operands


def _is_part(node: Node) -> bool:
    """Whether views lead back to a part of what comes from a softmax."""
    for _ in range(LONGEST):
        if node.op != "call_function":
            return False
        split = _split_of(node)
        if split is not None or operator_name(node) in _SLICES:
            return leads_to_softmax((split or node).args[0])
        if operator_name(node) not in _VIEWS:
            return False
        node = node.all_input_nodes[0]
    return False


def _split_of(node: Node) -> Node | None:
    """The call that ``node`` takes a piece of, if it does."""
    source = node.args[0] if node.target is operator.getitem else None
    return source if isinstance(source, Node) and operator_name(source) in _SPLITS else None


@dataclass(frozen=True)
class _Part:
    """A part of the weights and the values that it weighs: places ``start`` to ``end`` of axis ``place`` of ``source``.

    Attributes:
        axes: Of ``source``, without the label of the sources at ``place``.
        label: Of the sources of this part.
    """

    source: Node
    axes: Axes
    place: int
    start: sympy.Expr
    end: sympy.Expr
    label: str
    value: Leaf


class _Finder(Chains):
    """Finds the parts, the softmax behind them, and names for the labels."""

    def __init__(self, match: Match) -> None:
        super().__init__(match)
        self._weights: list[tuple[Node, Axes]] = []
        self._both = ""

    # ── the sum of products

    def parts(self, node: Node) -> list[_Part]:
        """The parts in the order of their places, proven to be all of one axis."""
        self.found.output = self.tracer.fresh(shape_of(node))
        parts = [self._part(*term) for term in self._terms(node, self.found.output)]
        first = parts[0]
        same = all(part.source is first.source and part.place == first.place for part in parts)
        self.match.require(same, "the parts are of different weights", node)
        axes = {self.tracer.resolve(part.axes) for part in parts}
        self.match.require(len(axes) == 1, "the parts of the weights meet their values along different axes", node)
        ordered: list[_Part] = []
        at = sympy.Integer(0)
        while len(ordered) < len(parts):
            following = [part for part in parts if _is_zero(part.start - at)]
            self.match.require(len(following) == 1, "the parts of the weights are not proven to be all of them", node)
            ordered += following
            at = following[0].end
        whole = _is_zero(at - _expression(shape_of(first.source)[first.place]))
        self.match.require(whole, "some of the weights are dropped", node)
        return ordered

    def _terms(self, node: Node, axes: Axes) -> list[tuple[Node, Axes]]:
        node, axes = self._through_views(node, axes)
        if operator_name(node) != "add" or read_product(node) is not None:
            return [(node, axes)]
        given = bind(node)
        sides = (given["self"], given["other"])
        whole = all(is_tensor(side) and shape_of(side) == shape_of(node) for side in sides)
        self.match.require(whole and given["alpha"] == 1, "something else is added than products of one shape", node)
        self._take(node)
        return [term for side in sides for term in self._terms(side, axes)]

    def _part(self, node: Node, axes: Axes) -> _Part:
        product = self._product(node, "something else is added than products")
        self.match.require(product.addend is None, "something is added to a product", node)
        sides = self._factors(product, axes)
        summed = self._summed(product, sides)
        self.match.require(len(summed) == 1, "the products do not sum over one axis each", node)
        places = [place for place in (0, 1) if _is_part(sides[place][0])]
        self.match.require(len(places) == 1, "not one factor alone is a part of the weights", node)
        source, own, place, start, end = self._cut(*sides[places[0]], summed[0])
        return _Part(source, own, place, start, end, summed[0], self._operand(*sides[1 - places[0]]))

    def _cut(self, node: Node, axes: Axes, label: str) -> tuple[Node, Axes, int, sympy.Expr, sympy.Expr]:
        """Back to what a part was cut from: its axes, the axis that was cut, and from where to where."""
        node, axes = self._through_views(node, axes)
        self._take(node)
        given, start = bind(node), sympy.Integer(0)
        if (split := _split_of(node)) is not None:
            given = bind(split)
            self._take(split)
            place = int(given.get("dim", 0)) % len(axes)
            for piece in value_of(split)[: node.args[1]]:
                start += _expression(piece.shape[place])
        else:
            self.match.require(operator_name(node) in _SLICES and given.get("step", 1) == 1, "no plain part", node)
            place = int(given["dim"]) % len(axes)
            start = _expression(given["start"] or 0)
        source = given["self"]
        # Where the sign is not known: parts that are one after another prove it.
        if start.is_negative or (start.is_nonnegative is None and start.could_extract_minus_sign()):
            start += _expression(shape_of(source)[place])
        self.match.require(axes[place] == (label,), "the weights are cut along another axis than is summed", node)
        others = tuple(() if each == place else axis for each, axis in enumerate(axes))
        return source, others, place, start, start + _expression(shape_of(node)[place])

    # ── the softmax

    def softmax(self, parts: list[_Part]) -> tuple[Node, Axes, float]:
        """The scores, their axes, and the rate of dropout behind the softmax."""
        first, rate = parts[0], 0.0
        node, place = first.source, first.place
        whole = self.tracer.label(shape_of(node)[place])
        self._both = whole[0]
        axes = (*first.axes[:place], whole, *first.axes[place + 1 :])
        for _ in range(LONGEST):
            self._weights.append((node, axes))
            name, given = operator_name(node), bind(node) if node.op == "call_function" else {}
            if name in SOFTMAXES:
                break
            if name == "dropout" and rate == 0.0:
                rate = float(self.match.literal(given["p"], "dropout probability")) if given["train"] else 0.0
                self._take(node)
                node = given["input"]
                continue
            step = self._back(node, axes)
            self.match.require(step is not None, f"the weights come from {operator_name(node)}, not a softmax", node)
            assert step is not None
            node, axes = step
        else:
            self.match.refuse("the chain of weights is too long", node)
        self._take(node)
        self._note_width(node, given)
        axes = self.tracer.resolve(axes)
        over = axes[given["dim"] % len(axes)] == whole
        self.match.require(over, "the softmax does not run over the axis that is cut", node)
        scores = given["self"]
        for leaf in (Leaf(scores, axes), *(part.value for part in parts)):
            self._note_roles(leaf.node, leaf.axes)
        positions = all(self._are_positions((part.label,)) for part in parts) or self._are_positions(whole)
        proven = positions or leads_to_joined_products(scores)
        self.match.require(proven, "the scores are no products, nor is their axis proven to hold positions", scores)
        same = value_of(scores).dtype == value_of(first.source).dtype
        self.match.require(same and rank(scores) == len(axes), "the weights have another dtype than the scores", scores)
        return scores, axes, rate

    def names(self, parts: list[_Part], scores: Axes) -> dict[str, str]:
        """Names of labels by what they count."""
        flat = self.tracer.flat
        output, sources = flat(self.found.output), [part.label for part in parts]
        own = [label for label in flat(scores) if label != self._both]
        held = {label for part in parts for label in flat(part.value.axes)}
        features = [label for label in output if label not in own]
        batch = [label for label in own if label in held]
        names = letters(batch, [label for label in own if label not in held], [self._both], (), features)
        names |= {label: f"j{number}" for number, label in enumerate(sources, 1)}
        for part in parts:
            value = flat(part.value.axes)
            whole = {part.label, *features} <= set(value)
            self.match.require(whole, "a factor lacks features or sources", part.value.node)
            stray = set(value) - {part.label} - set(own) - set(features)
            self.match.require(not stray, "the values are summed over an axis of their own", part.value.node)
        self.match.require(set(own) <= set(output), "the weights are summed over another axis too", parts[0].source)
        return names

    def used_elsewhere(self, node: Node, scores: Axes, rate: float) -> Node | None:
        """The node of the weights that is used outside too, if any."""
        inside = set(self.found.region)
        outside = [
            one for one in self.found.region if one is not node and any(user not in inside for user in one.users)
        ]
        if not outside:
            return None
        known = dict(self._weights)
        one = outside[0]
        plain = len(outside) == 1 and one in known and self.tracer.resolve(known[one]) == scores
        self.match.require(plain, f"the intermediate value {one.name} is used elsewhere", one)
        kept = value_of(one).dtype == value_of(node).dtype and (rate == 0.0 or one is self._weights[0][0])
        self.match.require(kept, "the weights are used elsewhere before something is done to them", one)
        return one


def _expression(size: Any) -> sympy.Expr:
    """An extent or a place as an expression; one that is computed in the graph by the value recorded of it."""
    size = value_of(size) if isinstance(size, Node) else size
    return sympy.expand(size.node.expr) if isinstance(size, SymInt) else sympy.Integer(size)


def _is_zero(difference: sympy.Expr) -> bool:
    return bool(sympy.expand(difference) == 0)
