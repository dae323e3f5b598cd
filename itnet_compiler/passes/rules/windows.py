"""Rule ``windows``: windows taken with ``unfold``, times weights, summed: a convolution written as a product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

from torch.fx import Node

from ...ir.domain import Window
from ...ir.kernel import Spec
from ...ir.window_sum import WindowAxis, WindowSum, WindowSumOwn
from ..axes import is_weight
from ..forms.attention_steps import LONGEST, Chains, Leaf
from ..forms.contraction import Contraction
from ..forms.labels import Axes
from ..forms.memory_order import memory_order
from ..forms.products import read_product
from ..match import Match, Proposal, bind, present, propose, rank, rule, shape_of, value_of
from ..operators import COPIES, VIEWS, operator_name

__all__ = ["windows"]

_PRODUCTS = tuple(f"aten.{name}.default" for name in "linear matmul bmm mm addmm baddbmm einsum tensordot".split())
_TAKING = ("im2col", "unfold")
_MOST_AXES = 3


@rule("windows", *_PRODUCTS, "aten.sum.dim_IntList")
def windows(node: Node, match: Match) -> Proposal:
    """y[p] = Σ_{c, k} w[c, k]·x[c, s·p − low + d·k]; the weights may differ from place to place."""
    read = read_product(node)
    match.require(read is not None and len(read[0].operands) == 2, "the last operation is no product of two factors")
    assert read is not None
    places = [place for place, side in enumerate(read[0].operands) if _has_windows(side)]
    match.require(places, "neither factor consists of windows taken with unfold")
    return _Finder(match).run(node, read[0], places[0])


def _has_windows(node: Node) -> bool:
    """Whether views lead back to windows."""
    for _ in range(LONGEST):
        if node.op != "call_function" or not node.args or not isinstance(node.args[0], Node):
            return False
        name = operator_name(node)
        if name in _TAKING:
            return True
        if name not in VIEWS and name not in COPIES:
            return False
        node = node.args[0]
    return False


class _Finder(Chains):
    """One search; ``taken`` holds (source, place, tap) and (size, stride, padding, dilation) by axis."""

    def __init__(self, match: Match) -> None:
        super().__init__(match)
        self.taken: list[tuple[tuple[Axes, Axes, Axes], tuple[int, int, int, int]]] = []

    def run(self, node: Node, product: Contraction, place: int) -> Proposal:
        match, tracer = self.match, self.tracer
        output = tracer.fresh(shape_of(node))
        self._product(node, "")
        sides = self._factors(product, output)
        summed = self._summed(product, sides)
        source = self._source(*sides[place])
        weight = self._operand(*sides[1 - place])
        bias = self._bias(product, output)
        axes, domain = self._window(source)
        taps = {axis.tap for axis in axes if axis.tap}
        match.require(taps <= set(tracer.flat([summed])), "the sum does not run over all places of a window", node)
        found = set(tracer.flat(output))
        inside = all(not axis.place or axis.place in found for axis in axes)
        match.require(inside, "the sum runs over windows, not only over the places in them", node)
        leaves = {"input": source, "weight": weight, "bias": bias}
        kept = {role: leaf for role, leaf in leaves.items() if leaf is not None}
        match.closed(self.found.region, (node,), {role: leaf.node for role, leaf in kept.items()})
        dtypes = {value_of(leaf.node).dtype for leaf in kept.values()} | {value_of(node).dtype}
        match.require(len(dtypes) == 1 and dtypes.pop().is_floating_point, "operands and result differ in dtype", node)
        names = _names(axes, tracer.flat(source.axes), tracer.flat(weight.axes), found)
        self._require_extents(kept, names)
        own = {axis.place for axis in axes if axis.place} & set(tracer.flat(weight.axes))
        kind = WindowSumOwn if own else WindowSum
        match.require(own or len(axes) <= _MOST_AXES, "windows in more than three axes", node)
        kernel = kind(
            input=tracer.text(source.axes, names),
            weight=tracer.text(weight.axes, names),
            output=tracer.text(output, names),
            axes=tuple(WindowAxis(*(names.get(label, "") for label in astuple(axis))) for axis in axes),
            bias=tracer.text(bias.axes, names) if bias is not None else "",
            sizes=tracer.sizes([*(leaf.axes for leaf in kept.values()), output], names),
            memory=memory_order(node),
        )
        operands = {role: leaf.node if leaf is not None else None for role, leaf in leaves.items()}
        origin = "convolution by windows" if is_weight(weight.node) else "dynamic convolution"
        region = sorted(set(self.found.region))
        return propose(Spec(kernel, domain, origin, present(operands)), operands, *region)

    # ── The windows

    def _source(self, node: Node, axes: Axes) -> Leaf:
        """Back to what windows are taken of, through every ``unfold`` in a row."""
        for _ in range(LONGEST):
            axes = self.tracer.resolve(axes)
            name = operator_name(node) if node.op == "call_function" else ""
            if self.taken and not _has_windows(node):
                return Leaf(node, axes)
            if name in _TAKING:
                node, axes = (self._of_image if name == "im2col" else self._of_axis)(node, axes)
                continue
            step = self.tracer.back(node, axes)
            self.match.require(step is not None, "windows are merged in a way that cannot be followed", node)
            assert step is not None
            self._take(node)
            node, axes = step
        return self.match.refuse("the chain of views is too long", node)

    def _of_axis(self, node: Node, axes: Axes) -> tuple[Node, Axes]:
        """``Tensor.unfold``: windows along one axis, the places in them last."""
        given = bind(node)
        source: Node = given["self"]
        size, step = (self.match.literal(given[key], f"the {key} of windows") for key in ("size", "step"))
        self.match.require(isinstance(size, int) and isinstance(step, int), "the extent of windows is not fixed", node)
        place = given["dimension"] % max(rank(source), 1)
        own = (self.tracer.label(shape_of(source)[place]),)
        self.taken.append(((own, axes[place : place + 1], axes[-1:]), (size, step, 0, 1)))
        self._take(node)
        return source, (*axes[:place], *own, *axes[place + 1 : -1])

    def _of_image(self, node: Node, axes: Axes) -> tuple[Node, Axes]:
        """``unfold`` of an image: [N, C·Π k, L]."""
        given = bind(node)
        source: Node = given["self"]
        keys = ("kernel_size", "stride", "padding", "dilation")
        numbers: Sequence[tuple[int, ...]] = [self.match.literal(given[key], f"the {key} of windows") for key in keys]
        shape = shape_of(source)
        places = [
            (extent + 2 * pad - step * (size - 1) - 1) // stride + 1
            for extent, size, stride, pad, step in zip(shape[-2:], *numbers, strict=True)
        ]
        inner = self.tracer.regrouped(axes[-2:-1], (shape[-3], *numbers[0]))
        outer = ((), ()) if not axes[-1] else self.tracer.regrouped(axes[-1:], places)
        fits = inner is not None and outer is not None
        self.match.require(fits, "the axes of windows are merged in a way that cannot be followed", node)
        assert inner is not None
        assert outer is not None
        own = tuple(self.tracer.label(extent) for extent in shape[-2:])
        for axis in range(2):
            triple = (own[axis : axis + 1], outer[axis : axis + 1], inner[axis + 1 : axis + 2])
            size, stride, pad, step = (values[axis] for values in numbers)
            self.taken.append((triple, (size, stride, pad, step)))
        self._take(node)
        return source, (*self.tracer.resolve(axes[:-2]), inner[0], *own)

    def _window(self, source: Leaf) -> tuple[list[WindowAxis], Window]:
        """Every axis of the window in the order of the source's axes, in labels; and the domain."""
        order = self.tracer.flat(source.axes)
        found = []
        for triple, numbers in self.taken:
            labels = [self.tracer.flat(axes) for axes in triple]
            self.match.require(all(len(each) <= 1 for each in labels), "places are taken apart", source.node)
            axis = WindowAxis(*(each[0] if each else "" for each in labels))
            known = not axis.source or axis.source in order
            self.match.require(known, "windows are taken of windows", source.node)
            found.append((order.index(axis.source) if axis.source else len(order), axis, numbers))
        found.sort(key=lambda each: each[0])
        size, stride, pads, step = zip(*(numbers for _, _, numbers in found), strict=True)
        domain = Window(size, stride, tuple((pad, pad) for pad in pads), step)
        return [axis for _, axis, _ in found], domain

    # ── The rest

    def _bias(self, product: Contraction, output: Axes) -> Leaf | None:
        if product.addend is None:
            return None
        if product.added is None:
            axes = self.tracer.aligned(product.addend, output)
        else:
            by_name = dict(zip(product.output, self.tracer.resolve(output), strict=True))
            axes = tuple(by_name[name] for name in product.added)
        self.match.require(axes is not None, "the addend is wider than the product", product.addend)
        assert axes is not None
        return Leaf(product.addend, axes)

    def _require_extents(self, leaves: dict[str, Leaf], names: dict[str, str]) -> None:
        """Every extent can be read off the operands."""
        for leaf in leaves.values():
            for axis in self.tracer.resolve(leaf.axes):
                for label in axis:
                    self.match.require(label in names, "a factor has an axis that the result lacks", leaf.node)
                free = [label for label in axis if self.tracer.fixed(label) is None]
                self.match.require(len(free) <= 1, "two axes whose extents are free are merged", leaf.node)


def _names(axes: Sequence[WindowAxis], source: Any, weight: Any, output: set[str]) -> dict[str, str]:
    """b: samples, g: groups, c: channels summed, o: channels made; y x, p q, i j: positions, places, taps."""
    letters = [("x", "p", "k")] if len(axes) == 1 else [("z", "r", "h"), ("y", "p", "i"), ("x", "q", "j")][-len(axes) :]
    if len(axes) > _MOST_AXES:
        letters = [(f"x{number}", f"p{number}", f"k{number}") for number in range(len(axes))]
    names = {
        label: letter
        for axis, triple in zip(axes, letters, strict=True)
        for label, letter in zip(astuple(axis), triple, strict=True)
        if label
    }
    groups: dict[str, list[str]] = {"b": [], "g": [], "c": [], "o": []}
    for label in dict.fromkeys((*source, *weight)):
        if label not in names:
            if label not in source:
                groups["o"].append(label)
            elif label not in output:
                groups["c"].append(label)
            else:
                groups["g" if label in weight else "b"].append(label)
    for letter, group in groups.items():
        for number, label in enumerate(group):
            names[label] = letter if len(group) == 1 else f"{letter}{number + 1}"
    return names
