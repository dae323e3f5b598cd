"""What an attention may hold beside its three chains: products read in labels, sums over heads, a sink, a copy.

A sum over heads (talking heads) is a product of the scores or the weights with a matrix that has two labels of its
own. A sink is a score that joins the others in front of the softmax and whose weight is dropped behind it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from ...ir.steps import Step
from ..axes.sizes import ONE, monomial
from ..match import Match, Refusal, bind, op_name, rank, shape_of, value_of
from ..operators import operator_name
from .attention_steps import Chains, Leaf
from .contraction import Contraction
from .labels import Axes
from .products import as_sum, is_tensor, read_product

__all__ = ["Joins"]


def _tails(node: Node) -> dict[Node, tuple[int, ...]]:
    """Slices of a tensor, and of these, that reach to the end of every axis: where they begin."""
    found = {node: (0,) * len(shape_of(node))}
    waiting = [node]
    while waiting:
        view = waiting.pop()
        for user in view.users:
            if op_name(user) != "aten.slice.Tensor" or user.args[0] is not view:
                continue
            given = bind(user)
            place, low, end = given["dim"] % len(found[view]), given["start"] or 0, given["end"]
            if isinstance(low, int) and low >= 0 and end in (None, sys.maxsize) and given["step"] == 1:
                begin = found[view]
                found[user] = (*begin[:place], begin[place] + low, *begin[place + 1 :])
                waiting.append(user)
    return found


@dataclass(frozen=True)
class _Dropped:
    """The weights of a sink that are dropped.

    Attributes:
        both: The label of the positions and the sink.
        kept: Labels of the positions alone.
        start: Place of the first position.
        steps: Number of steps of the weights behind it.
    """

    both: str
    kept: tuple[str, ...]
    start: int
    steps: int


class Joins(Chains):
    """Goes back through sums over heads and a sink."""

    def __init__(self, match: Match) -> None:
        super().__init__(match)
        self._dropped: _Dropped | None = None

    @contextmanager
    def _restored_on_refusal(self) -> Iterator[None]:
        dropped = self._dropped
        try:
            with super()._restored_on_refusal():
                yield
        except Refusal:
            self._dropped = dropped
            raise

    def _add_addend(self, node: Node, product: Contraction, axes: Axes, steps: list[tuple[Step, Leaf | None]]) -> None:
        """What a product adds to its sum, as a step."""
        if product.addend is None:
            return
        given = bind(node)
        alpha, beta = given.get("alpha", 1), given.get("beta", 1)
        numbers = isinstance(alpha, (int, float)) and isinstance(beta, (int, float))
        self.match.require(numbers and beta == 1, "the accumulator of the product is scaled", node)
        if product.added is None:
            addend = self.tracer.aligned(product.addend, axes)
        else:
            known = dict(zip(product.output, self.tracer.resolve(axes), strict=True))
            addend = tuple(known[name] for name in product.added)
        self.match.require(addend is not None, "the accumulator does not fit the product", node)
        assert addend is not None
        steps.insert(0, (Step("plus"), self._operand(product.addend, addend)))
        if alpha != 1:
            steps.insert(0, (Step.by(float(alpha)), None))

    # ── what is written over

    def _as_written(self, node: Node) -> Node:
        """What the chain reads at ``node``: the values that were copied over all of it before, where there are any."""
        readers = [user for user in node.users if user in self.found.region]
        if not readers:
            return node
        writers: list[tuple[Node, list[Node]]] = []
        waiting: list[tuple[Node, list[Node]]] = [(node, [])]
        while waiting:
            view, path = waiting.pop()
            for user in view.users:
                name = operator_name(user)
                if op_name(user) == "aten.copy_.default" and user.args[0] is view and user < min(readers):
                    writers.append((user, [*path, user]))
                elif name in ("slice", "narrow") and user.args[0] is view and shape_of(user) == shape_of(node):
                    waiting.append((user, [*path, user]))
        if not writers:
            return node
        writer, path = max(writers)
        written = writer.args[1]
        if not isinstance(written, Node) or shape_of(written) != shape_of(node):
            return node
        for taken in path:
            self._take(taken)
        return written

    def _added_in_part(self, node: Node, axes: Axes) -> bool:
        """Take ``scores[…, a:, b:] += bias`` between ``node`` and what reads it; False where there is none."""
        readers = [user for user in node.users if user in self.found.region]
        views = _tails(node)
        added = [
            (view, user)
            for view in views
            for user in view.users
            if op_name(user) == "aten.add_.Tensor" and user.args[0] is view and user not in self.found.region
        ]
        if len(added) != 1 or not readers or added[0][1] > min(readers):
            return False
        (view, addition), start = added[0], views[added[0][0]]
        leaf = self._of_part(addition, view, axes, start)
        if leaf is None:
            return False
        back = [  # Python writes the sum to where it is already
            user
            for one, low in views.items()
            for user in one.users
            if low == start and op_name(user) == "aten.copy_.default" and user.args[:2] == (one, addition)
        ]
        for taken in (addition, *back):
            one: Any = taken
            while one is not node:
                self._take(one)
                one = one.args[0]
        self.found.steps.insert(0, (Step("plus", start=start[len(axes) - len(leaf.axes) :]), leaf))
        return True

    @staticmethod
    def _of_part(addition: Node, view: Node, axes: Axes, start: tuple[int, ...]) -> Leaf | None:
        """What is added to ``view``, with axes of the scores; None where it is broadcast along a part of an axis."""
        bias = addition.args[1]
        if not isinstance(bias, Node) or not is_tensor(bias) or bind(addition).get("alpha", 1) != 1:
            return None
        lead = len(axes) - rank(bias)
        if lead < 0 or any(start[:lead]) or value_of(bias).dtype != value_of(view).dtype:
            return None
        found: list[tuple[str, ...]] = []
        sizes = zip(shape_of(bias), shape_of(view)[lead:], axes[lead:], start[lead:], strict=True)
        for size, whole, axis, low in sizes:
            single = monomial(size) == ONE
            if low if single else size != whole:
                return None
            found.append(() if single else axis)
        return Leaf(bias, tuple(found))

    # ── weights that are normalised again

    def _normalised_again(
        self, node: Node, given: dict[str, Any], axes: Axes, keys: set[str]
    ) -> tuple[Node, Axes] | None:
        """Back through w / (Σ_j w + eps); None where it is another division."""
        source, bottom = given["self"], given["other"]
        if not is_tensor(bottom) or given.get("rounding_mode") is not None:
            return None
        total = self.tracer.aligned(bottom, axes)
        if total is None:
            return None
        views: list[Node] = []
        bottom, total = self._through_views(bottom, total, views)
        eps = 0.0
        if operator_name(bottom) == "add":
            sum_of = bind(bottom)
            if not isinstance(sum_of["other"], (int, float)) or sum_of["alpha"] != 1:
                return None
            eps = float(sum_of["other"])
            views.append(bottom)
            bottom, total = self._through_views(sum_of["self"], total, views)
        summed = as_sum(bottom)
        if summed is None or summed[0] is not source or bind(bottom).get("dtype") is not None:
            return None
        _, places, keepdim = summed
        over = {label for place in places for label in self.tracer.flat([axes[place]])}
        kept = tuple(() if place in places else axis for place, axis in enumerate(axes))
        wanted = kept if keepdim else tuple(axis for place, axis in enumerate(axes) if place not in places)
        if over != keys or self.tracer.resolve(total) != self.tracer.resolve(wanted):
            return None
        for taken in (node, *views, bottom):
            self._take(taken)
        self.found.after.insert(0, (Step("normalise", eps), None))
        return source, axes

    # ── sums over heads

    def _mixed(
        self,
        node: Node,
        axes: Axes,
        steps: list[tuple[Step, Leaf | None]],
        held: set[str],
        leads: Callable[[Node], bool],
    ) -> tuple[Node, Axes] | None:
        """Back through Σ_h matrix[g, h]·s[…, h, …], where s has the labels ``held``; None where it is no such sum."""
        read = read_product(node)
        if read is None or len(read[0].operands) != 2 or not held:
            return None
        sides = self._factors(read[0], axes)
        own = [set(self.tracer.flat(side_axes)) for _, side_axes in sides]
        places = [place for place in (0, 1) if held <= own[place] and not held & own[1 - place]]
        if len(places) != 1:
            return None
        (mixed, mixed_axes), (matrix, matrix_axes) = sides[places[0]], sides[1 - places[0]]
        mine, other = own[places[0]], own[1 - places[0]]
        old, new = other & mine, other - mine
        summed = set(self.tracer.flat(self._inner.values()))
        if len(old) != 1 or len(new) != 1 or old != summed or not leads(mixed):
            return None
        for taken in read[1]:
            self._take(taken)
        self._add_addend(node, read[0], axes, steps)
        steps.insert(0, (Step("mix", old=old.pop(), new=new.pop()), self._operand(matrix, matrix_axes)))
        return mixed, mixed_axes

    # ── sinks

    def _without_sink(self, node: Node, given: dict[str, Any], axes: Axes, keys: set[str]) -> tuple[Node, Axes] | None:
        """Back through the slice that drops the weight of a sink: the axis of keys is longer by it."""
        if self._dropped is not None or given.get("step", 1) != 1 or not isinstance(given.get("start") or 0, int):
            return None
        place = given["dim"] % len(axes)
        if set(axes[place]) != keys or given.get("start") not in (None, 0, 1):
            return None
        source = given["self"]
        both = self.tracer.label(shape_of(source)[place])
        self._take(node)
        self._dropped = _Dropped(both[0], axes[place], given.get("start") or 0, len(self.found.after))
        return source, (*axes[:place], both, *axes[place + 1 :])

    def _with_sink(self, node: Node, given: dict[str, Any], axes: Axes) -> tuple[Node, Axes]:
        """Back through the concatenation of scores and a sink, to the scores."""
        found, dropped = self.found, self._dropped
        assert dropped is not None
        place = given["dim"] % len(axes)
        parts = given["tensors"]
        self.match.require(axes[place] == (dropped.both,), "a sink joins the scores along another axis", node)
        self.match.require(
            len(parts) == 2, f"the scores are joined of {len(parts)} tensors, as in block-sparse attention", node
        )
        self.match.require(not found.steps, "the scores are changed after a sink has joined them", node)
        self.match.require(dropped.steps == len(found.after), "the weights are changed with that of a sink", node)
        main = parts[dropped.start]
        sink = parts[1 - dropped.start]
        extents = [shape_of(part)[place] for part in (main, sink)]
        kept = self.tracer.regrouped((dropped.kept,), (extents[0],))
        fits = kept is not None and monomial(extents[1]) == monomial(1)
        self.match.require(fits, "other weights than that of one sink are dropped", node)
        self._take(node)
        whole = tuple(dropped.kept if axis == (dropped.both,) else axis for axis in axes)
        found.weights = tuple(dropped.kept if axis == (dropped.both,) else axis for axis in found.weights)
        found.keys, self._dropped = dropped.kept, None
        found.sink = self._operand(sink, (*axes[:place], (), *axes[place + 1 :]))
        return main, whole
