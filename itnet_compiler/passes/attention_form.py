"""The normal form of attention: a sum of values weighted by a softmax of products, found backwards from that sum.

    y = Σ_j after(softmax_j(steps(Σ_c q·k)))·v

Three chains are followed, each backwards and in labels (see ``labels``): the weights, from the sum to the softmax;
the scores, from the softmax to the product; the operands, from either product to what is not a view. Whatever lies on
a chain is a view, a cast, or one elementwise step.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..ir.attention import Step
from .contraction import Contraction, contraction
from .labels import Axes, Tracer
from .match import Match, Refusal, bind, op_name, rank, shape_of, value_of
from .operators import operator_name

__all__ = ["Found", "Leaf", "find"]

_SOFTMAXES = frozenset({"softmax", "_softmax", "special_softmax"})
_LOG_SOFTMAXES = frozenset({"log_softmax", "_log_softmax", "special_log_softmax"})
_DROPOUTS = frozenset({"dropout"})
# Chains longer than this are no attention.
_LONGEST = 64


@dataclass(frozen=True)
class Leaf:
    """A value that the attention takes as it is, and the labels of its axes."""

    node: Node
    axes: Axes


@dataclass
class Found:
    """An attention, in labels that ``tracer`` resolves.

    Attributes:
        region: The nodes that compute it.
        query: Queries, keys and values.
        output: Axes of the result.
        weights: Axes of the weights where the softmax is taken.
        steps: Of the scores: what is done and the operand, if any.
        after: Of the weights, likewise.
        keys: Labels that the softmax runs over.
        second: Node on the way from the softmax whose value is used elsewhere, with its axes.
        wide: Whether something is cast to float32 on the way.
    """

    tracer: Tracer
    region: list[Node] = field(default_factory=list)
    query: Leaf | None = None
    key: Leaf | None = None
    value: Leaf | None = None
    output: Axes = ()
    weights: Axes = ()
    steps: list[tuple[Step, Leaf | None]] = field(default_factory=list)
    after: list[tuple[Step, Leaf | None]] = field(default_factory=list)
    keys: tuple[str, ...] = ()
    chain: list[tuple[Node, Axes, int]] = field(default_factory=list)
    wide: bool = False


def find(node: Node, match: Match) -> Found:
    """The attention whose last operation is ``node``: the sum over values, or the division that normalises it.

    Raises:
        Refusal: with the reason, where there is none.
    """
    return _Finder(match).run(node)


class _Finder:
    def __init__(self, match: Match) -> None:
        self.match = match
        self.tracer = Tracer()
        self.found = Found(self.tracer)

    # ── the sum over values

    def run(self, node: Node) -> Found:
        found, axes = self.found, self.tracer.fresh(shape_of(node))
        found.output = axes
        exponential: Node | None = None
        if operator_name(node) == "div":
            node, axes, exponential = self._normalised_afterwards(node, axes)
        product = self._product(node, "the last operation is no sum of products")
        places = [place for place in (0, 1) if _leads_to_softmax(product.operands[place], exponential)]
        self.match.require(places, "neither factor comes from a softmax", node)
        for attempt, place in enumerate(places):
            try:
                with self._restored_on_refusal():
                    self._weighted_sum(product, axes, place, exponential)
                    return found
            except Refusal:
                if attempt == len(places) - 1:
                    raise
        raise AssertionError("unreachable")

    def _weighted_sum(self, product: Contraction, axes: Axes, place: int, exponential: Node | None) -> None:
        found = self.found
        sides = self._factors(product, axes)
        (weights, weights_axes), (value, value_axes) = sides[place], sides[1 - place]
        summed = set(self._summed(product, sides))
        scores, scores_axes = self._weights(weights, weights_axes, exponential)
        over = set(self.tracer.flat([found.keys]))
        summed = set(self.tracer.flat([tuple(summed)]))
        self.match.require(
            over == summed,
            "the softmax does not run over the positions that are summed: its weights are normalised over another axis",
            weights,
        )
        self._scores(scores, scores_axes)
        found.value = self._operand(value, value_axes, scaled=False)

    def _normalised_afterwards(self, node: Node, axes: Axes) -> tuple[Node, Axes, Node]:
        """(Σ_j e·v) / Σ_j e: the product, its axes and e."""
        given = bind(node)
        top, bottom = given["self"], given["other"]
        tensors = isinstance(top, Node) and isinstance(bottom, Node) and given.get("rounding_mode") is None
        self.match.require(tensors, "divides by a number", node)
        self._take(node)
        top_axes = self.tracer.aligned(top, axes)
        total = self.tracer.aligned(bottom, axes)
        self.match.require(top_axes is not None and total is not None, "divides by something of another shape", node)
        assert top_axes is not None and total is not None
        top, top_axes = self._through_views(top, top_axes)
        bottom, total = self._through_views(bottom, total)
        summed = _as_sum(bottom)
        self.match.require(summed is not None, f"divides by {operator_name(bottom)}, which is no sum", bottom)
        assert summed is not None
        exponential, places, keepdim = summed
        self._take(bottom)
        self.match.require(operator_name(exponential) == "exp", "divides by a sum of something else than exp", bottom)
        self._denominator = (exponential, places, keepdim, total)
        return top, top_axes, exponential

    # ── weights: from the sum to the softmax

    def _weights(self, node: Node, axes: Axes, exponential: Node | None) -> tuple[Node, Axes]:
        """Follow the weights to the softmax; the scores and their axes."""
        found = self.found
        for _ in range(_LONGEST):
            axes = self.tracer.resolve(axes)
            found.chain.append((node, axes, len(found.after)))
            if node is exponential:
                return self._unnormalised(node, axes)
            name, given = operator_name(node), bind(node) if node.op == "call_function" else {}
            if name in _SOFTMAXES:
                self._take(node)
                self._note_width(node, given)
                return self._softmax(given["self"], given["dim"], axes)
            if name == "exp" and operator_name(given["self"]) in _LOG_SOFTMAXES:
                self._take(node)
                inner = given["self"]
                self._take(inner)
                self._note_width(inner, bind(inner))
                return self._softmax(bind(inner)["self"], bind(inner)["dim"], axes)
            if name == "div" and (core := self._quotient(node, given, axes)) is not None:
                return core
            if (step := self._back(node, axes)) is not None:
                node, axes = step
            else:
                node, axes = self._step(node, axes, found.after, "weights", _leads_to_softmax)
        return self.match.refuse("the chain of weights is too long", node)

    def _softmax(self, scores: Node, dim: int, axes: Axes) -> tuple[Node, Axes]:
        self.found.weights = axes
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
        summed = _as_sum(total)
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

    # ── scores: from the softmax to the product

    def _scores(self, node: Node, axes: Axes) -> None:
        found = self.found
        for _ in range(_LONGEST):
            axes = self.tracer.resolve(axes)
            read = _read_product(node)
            if read is not None and len(read[0].operands) == 2:
                self._pairs(node, read[0], axes)
                return
            if (step := self._back(node, axes)) is not None:
                node, axes = step
            else:
                node, axes = self._step(node, axes, found.steps, "scores", _leads_to_product)
        self.match.refuse("the chain of scores is too long", node)

    def _pairs(self, node: Node, product: Contraction, axes: Axes) -> None:
        """The product of queries and keys: the factor with the labels of the keys, and the one without."""
        found, given = self.found, bind(node)
        self._product(node, "")
        if product.addend is not None:
            alpha, beta = given.get("alpha", 1), given.get("beta", 1)
            numbers = isinstance(alpha, (int, float)) and isinstance(beta, (int, float))
            self.match.require(numbers and beta == 1, "the accumulator of the product is scaled", node)
            addend = self.tracer.aligned(product.addend, axes)
            self.match.require(addend is not None, "the accumulator does not fit the product", node)
            assert addend is not None
            found.steps.insert(0, (Step("plus"), self._leaf(product.addend, addend)))
            if alpha != 1:
                found.steps.insert(0, (Step("times", float(alpha)), None))
        sides = self._factors(product, axes)
        channels = self._summed(product, sides)
        self.match.require(channels, "the scores are an outer product: nothing is summed", node)
        keys = set(self.tracer.flat([found.keys]))
        held = [set(self.tracer.flat(side_axes)) & keys for _, side_axes in sides]
        self.match.require(any(held), "neither factor of the scores depends on the positions summed over", node)
        self.match.require(not all(held), "both factors of the scores depend on the positions summed over", node)
        key = 0 if held[0] else 1
        self.match.require(held[key] == keys, "the keys lack some of the positions that the softmax runs over", node)
        found.query = self._operand(*sides[1 - key], scaled=True)
        found.key = self._operand(*sides[key], scaled=True)

    # ── steps

    def _step(
        self, node: Node, axes: Axes, steps: list[tuple[Step, Leaf | None]], what: str, leads: Any
    ) -> tuple[Node, Axes]:
        """One elementwise step of a chain backwards; what it takes besides is an operand."""
        name, given = operator_name(node), bind(node) if node.op == "call_function" else {}
        source: Any = given.get("self")
        if name in _DROPOUTS:
            if given["train"] and given["p"]:
                rate = float(self.match.literal(given["p"], "dropout probability"))
                steps.insert(0, (Step("dropout", rate), None))
            self._take(node)
            return given.get("input", source), axes
        if name in ("tanh", "nan_to_num"):
            plain = all(given.get(key) is None for key in ("nan", "posinf", "neginf"))
            self.match.require(plain, "NaN is replaced by another number than 0", node)
            steps.insert(0, (Step(name), None))
            self._take(node)
            return source, axes
        if name in ("masked_fill", "where"):
            return self._choice(node, name, given, axes, steps, leads)
        kinds = {"mul": "times", "multiply": "times", "div": "over", "add": "plus", "sub": "minus"}
        if name not in kinds or given.get("rounding_mode") is not None:
            shown = f"{what} come from {op_name(node)}"
            end = "a softmax" if what == "weights" else "a product of q and k"
            self.match.refuse(f"the {shown}, not from {end}", node)
        other = given["other"]
        self.match.require(given.get("alpha", 1) == 1, "one side of a sum is scaled", node)
        self._take(node)
        if not isinstance(other, Node) or not isinstance(value_of(other), Tensor):
            number = float(self.match.literal(other, f"a number in the {what}"))
            self._add_number(kinds[name], number, steps, node)
            return source, axes
        spine, side = source, other
        if not isinstance(source, Node):
            return self.match.refuse(f"a number {name} the {what}", node)
        commutes = name in ("mul", "multiply", "add")
        if commutes and leads(other) and not (leads(source) and self._is_whole(source, axes)):
            spine, side = other, source
        spine_axes, side_axes = self.tracer.aligned(spine, axes), self.tracer.aligned(side, axes)
        self.match.require(
            spine_axes == self.tracer.resolve(axes), f"the {what} are broadcast by {op_name(node)}", node
        )
        assert side_axes is not None
        of_rows = not set(self.tracer.flat(side_axes)) & set(self.tracer.flat([self.found.keys]))
        if name == "sub" and what == "scores" and of_rows:  # a shift of a whole row changes no weight
            self._take_shift(side, spine)
            return spine, axes
        constant = _constant(side)
        if constant is not None:
            self._take_constant(side)
            self._add_number(kinds[name], constant, steps, node)
        else:
            steps.insert(0, (Step(kinds[name]), self._leaf(side, side_axes)))
        return spine, axes

    def _is_whole(self, node: Node, axes: Axes) -> bool:
        """Whether a side of a sum is as large as the sum."""
        return self.tracer.aligned(node, axes) == self.tracer.resolve(axes)

    def _add_number(self, kind: str, number: float, steps: list[tuple[Step, Leaf | None]], node: Node) -> None:
        if kind == "over":
            self.match.require(number != 0, "divides by 0", node)
            kind, number = "times", 1.0 / number
        if kind == "minus":
            kind, number = "plus", -number
        steps.insert(0, (Step(kind, number), None))

    def _choice(
        self,
        node: Node,
        name: str,
        given: dict[str, Any],
        axes: Axes,
        steps: list[tuple[Step, Leaf | None]],
        leads: Any,
    ) -> tuple[Node, Axes]:
        """masked_fill(s, m, number), where(m, s, number), where(m, number, s)."""
        if name == "masked_fill":
            spine, mask, other, kind = given["self"], given["mask"], given["value"], "fill"
        else:
            mask, first, second = given["condition"], given["self"], given["other"]
            kept = isinstance(first, Node) and _constant(first) is None and leads(first)
            spine, other, kind = (first, second, "keep") if kept else (second, first, "fill")
        number: Any = _constant(other) if isinstance(other, Node) else other
        known = isinstance(number, (int, float)) and not isinstance(number, bool)
        self.match.require(known, "what is put in place of masked scores is no number", node)
        self.match.require(isinstance(spine, Node), "nothing but numbers to choose from", node)
        self.match.require(value_of(mask).dtype == torch.bool, f"a mask of {value_of(mask).dtype}", node)
        spine_axes, mask_axes = self.tracer.aligned(spine, axes), self.tracer.aligned(mask, axes)
        self.match.require(spine_axes == self.tracer.resolve(axes), "the mask widens what it masks", node)
        assert mask_axes is not None
        self._take(node)
        self._take_constant(other)
        rounded = float(torch.tensor(float(number), dtype=value_of(node).dtype))  # −3e38 is −∞ in bfloat16
        steps.insert(0, (Step(kind, rounded), self._leaf(mask, mask_axes)))
        return spine, axes

    def _take_constant(self, node: object) -> None:
        """Take what makes a number: a region must not depend on it as on data."""
        while isinstance(node, Node) and node.op == "call_function":
            self._take(node)
            node = next((source for source in node.all_input_nodes if _is_tensor(source)), None)

    def _take_shift(self, node: Node, spine: Node) -> None:
        """Take what computes the maximum of a row from the scores themselves; anything else stays where it is."""
        chain: list[Node] = []
        for _ in range(8):
            if node is spine:
                for taken in chain:
                    self._take(taken)
                return
            if node.op != "call_function" or len(node.users) != 1:
                return
            chain.append(node)
            source = node.args[0]
            if operator_name(node) not in ("amax", "max", "getitem", "detach", "unsqueeze", "view", "expand"):
                return
            if not isinstance(source, Node):
                return
            if source is spine:
                for taken in chain:
                    self._take(taken)
                return
            node = source

    # ── operands

    def _operand(self, node: Node, axes: Axes, *, scaled: bool) -> Leaf:
        """Back through views that nobody else uses, and for queries and keys through products with a number."""
        for _ in range(_LONGEST):
            if len(node.users) != 1 or node.op != "call_function":
                break
            name, given = operator_name(node), bind(node)
            if scaled and name in ("mul", "div") and not str(node.target).split(".")[1].endswith("_"):
                other, source = given["other"], given["self"]
                number = other if not isinstance(other, Node) else _constant(other)
                whole = (
                    isinstance(source, Node) and isinstance(number, (int, float)) and given.get("rounding_mode") is None
                )
                if whole and number and rank(source) == len(axes) and shape_of(source) == shape_of(node):
                    factor = float(number) if name == "mul" else 1.0 / float(number)
                    self.found.steps.insert(0, (Step("times", factor), None))
                    self._take(node)
                    self._take_constant(other)
                    node = source
                    continue
            step = self.tracer.back(node, axes)
            if step is None or value_of(step[0]).dtype != value_of(node).dtype:
                break
            self._take(node)
            node, axes = step
        return Leaf(node, axes)

    def _leaf(self, node: Node, axes: Axes) -> Leaf:
        """An operand of a step: back through views that nobody else uses."""
        for _ in range(_LONGEST):
            step = self.tracer.back(node, axes) if len(node.users) == 1 else None
            if step is None or value_of(step[0]).dtype != value_of(node).dtype:
                break
            self._take(node)
            node, axes = step
        return Leaf(node, axes)

    def _back(self, node: Node, axes: Axes) -> tuple[Node, Axes] | None:
        step = self.tracer.back(node, axes)
        if step is None:
            return None
        if value_of(node).dtype == torch.float32 and value_of(step[0]).dtype != torch.float32:
            self.found.wide = True
        self._take(node)
        return step

    def _through_views(self, node: Node, axes: Axes, taken: list[Node] | None = None) -> tuple[Node, Axes]:
        """Back through views; they are taken, or noted in ``taken``."""
        while (step := self.tracer.back(node, axes)) is not None:
            if taken is None:
                self._take(node)
            else:
                taken.append(node)
            node, axes = step
        return node, self.tracer.resolve(axes)

    # ── products

    def _product(self, node: Node, reason: str) -> Contraction:
        read = _read_product(node)
        self.match.require(read is not None and len(read[0].operands) == 2, reason, node)
        assert read is not None
        for taken in read[1]:
            self._take(taken)
        return read[0]

    def _factors(self, product: Contraction, axes: Axes) -> list[tuple[Node, Axes]]:
        """Both factors with their axes, in the labels of the result and new ones for what is summed."""
        known = dict(zip(product.output, axes, strict=True))
        self._inner: dict[str, tuple[str, ...]] = {}
        sides = []
        for operand, names in zip(product.operands, product.labels, strict=True):
            self.match.require(len(set(names)) == len(names), "the diagonal of an operand", operand)
            found = []
            for name, size in zip(names, shape_of(operand), strict=True):
                if name not in known:
                    known[name] = self._inner[name] = self.tracer.label(size)
                found.append(() if isinstance(size, int) and size == 1 else known[name])
            sides.append((operand, tuple(found)))
        return sides

    def _summed(self, product: Contraction, sides: list[tuple[Node, Axes]]) -> tuple[str, ...]:
        """Labels summed over; each must be in both factors."""
        summed = tuple(label for name in product.summed for label in self._inner.get(name, ()))
        for side, axes in sides:
            lacks = set(summed) - {label for axis in axes for label in axis}
            self.match.require(not lacks, "one factor is summed on its own", side)
        return summed

    # ── bookkeeping

    def _take(self, node: Node) -> None:
        if node not in self.found.region:
            self.found.region.append(node)

    def _note_width(self, node: Node, given: dict[str, Any]) -> None:
        if given.get("dtype") == torch.float32 or value_of(node).dtype != value_of(given["self"]).dtype:
            self.found.wide = True

    @contextmanager
    def _restored_on_refusal(self) -> Iterator[None]:
        found = self.found
        lists: tuple[list[Any], ...] = (found.region, found.steps, found.after, found.chain)
        before = [list(each) for each in lists]
        try:
            yield
        except Refusal:
            for each, old in zip(lists, before, strict=True):
                each[:] = old
            raise


# ── reading single nodes


def _read_product(node: object) -> tuple[Contraction, list[Node]] | None:
    """A product as a contraction, with the nodes that it consists of: one operator, or a sum of a product."""
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    name = operator_name(node)
    if name != "sum":
        try:
            read = contraction(node)
        except (KeyError, TypeError, AttributeError):
            return None
        return None if read is None else (read, [node])
    given = bind(node)
    inner, dims = given["self"], given.get("dim")
    if operator_name(inner) != "mul" or not dims or given.get("dtype") is not None or len(inner.users) != 1:
        return None
    first, second = bind(inner)["self"], bind(inner)["other"]
    if not (_is_tensor(first) and _is_tensor(second)):
        return None
    dims = {place % rank(inner) for place in (dims if isinstance(dims, (list, tuple)) else [dims])}
    names = tuple(f"a{place}" for place in range(rank(inner)))
    output = tuple(name for place, name in enumerate(names) if place not in dims)
    if given.get("keepdim"):
        return None
    labels = tuple(names[len(names) - rank(operand) :] for operand in (first, second))
    return Contraction((first, second), labels, output), [node, inner]


def _as_sum(node: Node) -> tuple[Node, list[int], bool] | None:
    """(summand, axes, keepdim) of a sum over axes."""
    if node.op != "call_function" or operator_name(node) != "sum":
        return None
    given = bind(node)
    dims = given.get("dim")
    if not dims and dims != 0:
        return None
    places = [place % rank(given["self"]) for place in (dims if isinstance(dims, (list, tuple)) else [dims])]
    return given["self"], places, bool(given.get("keepdim"))


def _is_tensor(value: object) -> bool:
    return isinstance(value, Node) and isinstance(value_of(value), Tensor)


def _constant(node: object) -> float | None:
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
    constant = getattr(value_of(node), "constant", None)
    if node.op == "get_attr" and isinstance(constant, Tensor):
        return float(constant)
    return None


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None


_ON_THE_WAY = frozenset(
    "mul multiply div add sub masked_fill where tanh dropout nan_to_num view reshape _unsafe_view flatten unflatten"
    " permute transpose mT t unsqueeze squeeze expand contiguous clone to _to_copy float double half bfloat16 type_as"
    " alias detach swapaxes movedim".split()
)


def _leads_to_softmax(node: object, exponential: Node | None = None) -> bool:
    return _leads(node, lambda found: found is exponential or _is_softmax(found))


def _is_softmax(node: Node) -> bool:
    name = operator_name(node)
    if name in _SOFTMAXES:
        return True
    source = node.args[0] if node.args else None
    if name == "exp":
        return isinstance(source, Node) and operator_name(source) in _LOG_SOFTMAXES
    return name == "div" and isinstance(source, Node) and operator_name(source) == "exp"


def _leads_to_product(node: object) -> bool:
    return _leads(node, lambda found: _read_product(found) is not None)


def _leads(node: object, is_end: Any) -> bool:
    """Whether elementwise steps and views lead back from ``node`` to what ``is_end`` accepts."""
    waiting: list[object] = [node]
    seen: set[Node] = set()
    while waiting and len(seen) < 4 * _LONGEST:
        one = waiting.pop()
        if not isinstance(one, Node) or one in seen or one.op != "call_function":
            continue
        seen.add(one)
        if is_end(one):
            return True
        if operator_name(one) in _ON_THE_WAY:
            waiting += one.all_input_nodes
    return False
