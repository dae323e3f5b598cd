"""Chains of elementwise steps and views, followed backwards in labels: what the weights and the scores go through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...ir.steps import LOW, Step
from ..axes import AxisRole, is_weight, roles_of
from ..match import Match, Refusal, bind, op_name, rank, shape_of, value_of
from ..operators import operator_name
from .contraction import Contraction
from .labels import Axes, Tracer
from .products import constant, is_tensor, read_product

__all__ = ["LONGEST", "Chains", "Found", "Leaf"]

_DROPOUTS = frozenset({"dropout"})
_OF_A_MAXIMUM = frozenset("amax max getitem detach unsqueeze view expand".split())
_PARTS = frozenset("slice narrow select index index_select gather".split())
# Chains longer than this are no attention.
LONGEST = 64


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
        query: Queries.
        key: Keys.
        value: Values.
        sink: A score of every query whose weight is dropped.
        output: Axes of the result.
        weights: Axes of the weights where the softmax is taken.
        steps: Of the scores: what is done and the operand, if any.
        after: Of the weights, likewise.
        keys: Labels that the softmax runs over.
        given: Of the scores, where they are used elsewhere too, or made in another way than by a product.
        scores: Nodes from the softmax to the product, or to what is given.
        chain: Nodes from the sum to the softmax with their axes and the number of steps between them and the sum.
        wide: Whether something is cast to float32 on the way.
        scaled: Whether the sink takes part in the result, but not in the weights.
    """

    tracer: Tracer
    region: list[Node] = field(default_factory=list)
    query: Leaf | None = None
    key: Leaf | None = None
    value: Leaf | None = None
    sink: Leaf | None = None
    output: Axes = ()
    weights: Axes = ()
    steps: list[tuple[Step, Leaf | None]] = field(default_factory=list)
    after: list[tuple[Step, Leaf | None]] = field(default_factory=list)
    keys: tuple[str, ...] = ()
    given: Leaf | None = None
    scores: list[Node] = field(default_factory=list)
    chain: list[tuple[Node, Axes, int]] = field(default_factory=list)
    wide: bool = False
    scaled: bool = False


class Chains:
    """Follows chains of one search backwards; what it passes is taken into the region."""

    def __init__(self, match: Match) -> None:
        self.match = match
        self.tracer = Tracer()
        self.found = Found(self.tracer)
        self._inner: dict[str, tuple[str, ...]] = {}
        self._roles: dict[str, set[AxisRole]] = {}

    # ── what the labels count

    def _note_roles(self, node: Node, axes: Axes) -> None:
        for axis, role in zip(axes, roles_of(node), strict=False):
            for label in self.tracer.flat([axis]) if len(axis) == 1 else ():
                self._roles.setdefault(label, set()).add(role)

    def _are_positions(self, labels: tuple[str, ...]) -> bool:
        return all(AxisRole.POSITION in self._roles.get(label, ()) for label in self.tracer.flat([labels]))

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
            if name in _PARTS:
                self.match.refuse(f"the {what} are a part of others ({op_name(node)})", node)
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
        if commutes and leads(other):
            first = leads(source) and self._is_whole(source, axes)
            data = self._is_whole(other, axes) and is_weight(source) and not is_weight(other)
            spine, side = (other, source) if data or not first else (source, other)
        spine_axes, side_axes = self.tracer.aligned(spine, axes), self.tracer.aligned(side, axes)
        self.match.require(
            spine_axes == self.tracer.resolve(axes), f"the {what} are broadcast by {op_name(node)}", node
        )
        assert side_axes is not None
        of_rows = not set(self.tracer.flat(side_axes)) & set(self.tracer.flat([self.found.keys]))
        if name == "sub" and what == "scores" and of_rows and self._forget_shifts(steps):
            self._take_shift(side, spine)
            return spine, axes
        number_of = constant(side)
        if number_of is not None:
            self._take_constant(side)
            self._add_number(kinds[name], number_of, steps, node)
        else:
            steps.insert(0, (Step(kinds[name]), self._operand(side, side_axes)))
        return spine, axes

    def _forget_shifts(self, steps: list[tuple[Step, Leaf | None]]) -> bool:
        """Whether a shift of a whole row in front of ``steps`` changes no weight."""
        keys = set(self.tracer.flat([self.found.keys]))
        for step, leaf in steps:
            if step.kind in ("times", "over"):
                kept = leaf is None or not keys & set(self.tracer.flat(leaf.axes))
            elif step.kind in ("fill", "keep"):
                kept = step.number is not None and step.number <= LOW
            else:
                kept = step.kind in ("plus", "minus", "mix")
            if not kept:
                return False
        return True

    def _is_whole(self, node: Node, axes: Axes) -> bool:
        """Whether a side of a sum is as large as the sum."""
        return self.tracer.aligned(node, axes) == self.tracer.resolve(axes)

    def _add_number(self, kind: str, number: float, steps: list[tuple[Step, Leaf | None]], node: Node) -> None:
        if kind in ("times", "over"):
            self.match.require(number != 0 or kind == "times", "divides by 0", node)
            step = Step.by(number, "*" if kind == "times" else "/")
        else:
            step = Step("plus", -number if kind == "minus" else number)
        steps.insert(0, (step, None))

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
            kept = isinstance(first, Node) and constant(first) is None and leads(first)
            spine, other, kind = (first, second, "keep") if kept else (second, first, "fill")
        number: Any = constant(other) if isinstance(other, Node) else other
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
        steps.insert(0, (Step(kind, rounded), self._operand(mask, mask_axes)))
        return spine, axes

    def _take_constant(self, node: object) -> None:
        """Take what makes a number: a region must not depend on it as on data."""
        while isinstance(node, Node) and node.op == "call_function":
            self._take(node)
            node = next((source for source in node.all_input_nodes if is_tensor(source)), None)

    def _take_shift(self, node: Node, spine: Node) -> None:
        """Take what computes the maximum of a row from the scores themselves; anything else stays where it is."""
        chain: list[Node] = []
        while node is not spine:
            known = node.op == "call_function" and operator_name(node) in _OF_A_MAXIMUM
            source = node.args[0] if known and len(node.users) == 1 else None
            if not isinstance(source, Node):
                return
            chain.append(node)
            node = source
        for taken in chain:
            self._take(taken)

    def _operand(self, node: Node, axes: Axes, *, scaled: str = "") -> Leaf:
        """Back through views that nobody else uses, and of what is ``scaled`` through products with a number."""
        for _ in range(LONGEST):
            if len(node.users) != 1 or node.op != "call_function":
                break
            name, given = operator_name(node), bind(node)
            if scaled and name in ("mul", "div") and not str(node.target).split(".")[1].endswith("_"):
                other, source = given["other"], given["self"]
                number = other if not isinstance(other, Node) else constant(other)
                whole = (
                    isinstance(source, Node) and isinstance(number, (int, float)) and given.get("rounding_mode") is None
                )
                if whole and number and rank(source) == len(axes) and shape_of(source) == shape_of(node):
                    factor = Step.by(float(number), "*" if name == "mul" else "/", scaled)
                    self.found.steps.insert(0, (factor, None))
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

    def _take(self, node: Node) -> None:
        self.match.passed[node] = None
        if node not in self.found.region:
            self.found.region.append(node)

    def _note_width(self, node: Node, given: dict[str, Any]) -> None:
        if given.get("dtype") == torch.float32 or value_of(node).dtype != value_of(given["self"]).dtype:
            self.found.wide = True

    def _product(self, node: Node, reason: str) -> Contraction:
        read = read_product(node)
        self.match.require(read is not None and len(read[0].operands) == 2, reason, node)
        assert read is not None
        for taken in read[1]:
            self._take(taken)
        return read[0]

    def _factors(self, product: Contraction, axes: Axes) -> list[tuple[Node, Axes]]:
        """Both factors with their axes, in the labels of the result and new ones for what is summed."""
        known = dict(zip(product.output, axes, strict=True))
        self._inner = {}
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

    @contextmanager
    def _restored_on_refusal(self) -> Iterator[None]:
        found = self.found
        lists: tuple[list[Any], ...] = (found.region, found.steps, found.after, found.chain, found.scores)
        before, sink, given = [list(each) for each in lists], found.sink, found.given
        try:
            yield
        except Refusal:
            found.sink, found.given = sink, given
            for each, old in zip(lists, before, strict=True):
                each[:] = old
            raise
