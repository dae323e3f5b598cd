"""Rule ``attention_by_hand``: attention however it is written, read in its normal form (see ``forms.attention``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch.fx import Node

from ...ir.attention import Attention
from ...ir.domain import Keys
from ...ir.kernel import Spec
from ...ir.layout import shown
from ...ir.steps import LOW, Step, renamed, sorted_labels
from ..effects import written_arguments
from ..forms.attention import find
from ..forms.attention_sinks import is_scaled_by_a_sink
from ..forms.attention_steps import Found, Leaf
from ..forms.labels import Axes, Tracer, letters
from ..forms.mask_conditions import Condition
from ..forms.mask_patterns import made_of, may_hide, read, within_segments
from ..forms.memory_order import memory_order
from ..forms.products import without_sum
from ..match import Match, Proposal, Unrelated, op_name, propose, rule, value_of

__all__ = ["attention_by_hand"]

_PRODUCTS = ("aten.matmul.default", "aten.bmm.default", "aten.mm.default", "aten.einsum.default", "aten.mv.default")
# Tried there for the sake of the reason alone: an attention is found from its last operation.
_SOFTMAXES = ("aten.softmax.int", "aten._softmax.default", "aten.log_softmax.int", "aten._log_softmax.default")


@rule("attention_by_hand", *_PRODUCTS, *_SOFTMAXES, "aten.sum.dim_IntList", "aten.div.Tensor", "aten.mul.Tensor")
def attention_by_hand(node: Node, match: Match) -> Proposal:
    """y = Σ_j softmax_j(scale·Σ_c q·k + …)·v, in any layout and any spelling."""
    if op_name(node) in _SOFTMAXES:
        match.refuse(without_sum(node))
    if op_name(node) == "aten.mul.Tensor" and not is_scaled_by_a_sink(node):
        raise Unrelated("no sum of products", node, 0)
    found = find(node, match)
    if (shared := _shared_scores(found)) is not None:
        found = find(node, match, given=shared)
    assert found.value is not None
    match.require(
        value_of(node).dtype == value_of(found.value.node).dtype, "the result has another dtype than the values", node
    )
    second, weights = _weights_used_elsewhere(node, found, match)
    match.require(second is None or not found.scaled, "the weights are used elsewhere without the sink", node)
    naming = _Naming(found, match)
    _prove_masks(found, naming)
    region = sorted(set(found.region))
    steps, operands = naming.steps(found.steps, "mask", "mixer")
    after, more = naming.steps(found.after, "factor", "mixer2")
    own_leaves = {"query": found.query, "key": found.key, "value": found.value}
    leaves: dict[str, Leaf] = {role: leaf for role, leaf in own_leaves.items() if leaf is not None} | operands | more
    leaves |= {"sink": found.sink} if found.sink is not None else {}
    for role, leaf in leaves.items():
        match.require(leaf.node not in region, f"the {role} is part of the attention itself", leaf.node)
    kernel = Attention(
        query=naming.text(found.query.axes) if found.query is not None else "",
        key=naming.text(found.key.axes) if found.key is not None else "",
        value=naming.text(found.value.axes),
        output=naming.text(found.output),
        weights=naming.text(weights),
        steps=_merged(steps),
        after=after,
        sizes=naming.sizes([*(leaf.axes for leaf in leaves.values()), found.output, weights]),
        returns_weights=second is not None,
        wide=found.wide,
        sink=naming.text(found.sink.axes) if found.sink is not None else "",
        memory=memory_order(node),
    )
    labels = kernel.labels
    own = tuple(label for axis in kernel.layouts.get("query", ()) for label in axis)
    stray = [label for label in own if label not in (*kernel.first, *labels.queries, *labels.channels)]
    match.require(not stray, "the queries are summed over positions of their own", node)
    if kernel.dropout:
        order = [label for axis in naming.layout(weights) for label in axis]
        drawn = [*labels.batch, *labels.queries, *labels.keys]
        match.require(order == drawn, "dropout draws for weights with their axes in another order", node)
    causal = any(step.kind == "causal" for step in kernel.steps)
    spec = Spec(kernel, Keys(causal=causal), "attention", tuple(leaves))
    outputs = (node,) if second is None else (node, second)
    return propose(spec, {role: leaf.node for role, leaf in leaves.items()}, *region, outputs=outputs)


def _shared_scores(found: Found) -> Node | None:
    """The last of the scores that something outside of the region takes too, or that are written to given ones."""
    inside = set(found.region)

    def shared(one: Node) -> bool:
        return any(user not in inside for user in one.users) or bool(found.given and written_arguments(one))

    return next((one for one in found.scores if one in inside and shared(one)), None)


def _weights_used_elsewhere(node: Node, found: Found, match: Match) -> tuple[Node | None, Axes]:
    """The node of the weights that is used outside too, if any, and the axes of the weights."""
    inside, after = set(found.region), [step for step, _ in found.after]
    for one in found.region:
        if one is node or all(user in inside for user in one.users):
            continue
        places = [(axes, done) for other, axes, done in found.chain if other is one]
        match.require(places, f"the intermediate value {one.name} is used elsewhere", one)
        axes, done = places[0]
        # ``done`` counts the steps between this node and the sum.
        match.require(done == 0, "the weights are used elsewhere before something is done to them", one)
        return one, tuple(renamed(axis, after, back=True) for axis in found.tracer.resolve(axes))
    return None, found.weights


def _prove_masks(found: Found, naming: _Naming) -> None:
    """Say of each mask what it is proven to let through; a causal one that is alone becomes a step of its own."""
    places = [place for place, (step, leaf) in enumerate(found.steps) if step.kind in _MASKS and leaf is not None]
    for place in places:
        step, leaf = found.steps[place]
        assert leaf is not None
        if step.start:
            found.steps[place] = (replace(step, hides=may_hide(leaf.node)), leaf)
            continue
        visible = _visible(step, leaf, found.tracer)
        query, key = naming.one_query, naming.one_key
        if visible is None and query is not None and key is not None and _shows_segments(step, leaf, naming):
            pattern = "within segments"
        elif visible is None or query is None or key is None:
            pattern = "padding" if step.kind in ("fill", "keep") and naming.is_padding(leaf) else ""
        else:
            if len(places) == 1 and visible.is_causal(query, key):
                found.steps[place] = (Step("causal", layout=naming.text(((query,), (key,)))), None)
                found.region += made_of(leaf.node)
                return
            pattern = visible.describe(query, key)
        hides = step.kind in ("plus", "minus") and may_hide(leaf.node)
        found.steps[place] = (replace(step, pattern=pattern, hides=hides), leaf)


def _shows_segments(step: Step, leaf: Leaf, naming: _Naming) -> bool:
    """Whether a mask lets through what has the number of the query, and nothing else."""
    if step.kind not in ("fill", "keep") or step.number is None or step.number > LOW:
        return False
    assert naming.one_query is not None
    assert naming.one_key is not None
    equal = within_segments(leaf.node, leaf.axes, naming.tracer, naming.one_query, naming.one_key)
    return equal is (step.kind == "keep")


_MASKS = ("fill", "keep", "plus", "minus")


def _visible(step: Step, leaf: Leaf, tracer: Tracer) -> Condition | None:
    """Which scores a mask leaves as they are, where that is proven."""
    pattern = read(leaf.node, leaf.axes, tracer)
    if pattern is None or step.kind == "minus":
        return None
    if step.kind == "plus":
        hidden = pattern.where(lambda value: value <= LOW)
        others = pattern.where(lambda value: value == 0.0)
        return others if hidden is not None and others is not None else None
    if step.number is None or step.number > LOW:
        return None
    hidden = pattern.where(bool)
    if hidden is None:
        return None
    return hidden.inverse() if step.kind == "fill" else hidden


def _merged(steps: Iterable[Step]) -> tuple[Step, ...]:
    """Neighbouring numbers that the scores are multiplied by as one."""
    result: list[Step] = []
    for step in steps:
        number = step.kind == "times" and step.number is not None
        if number and result and result[-1].kind == "times" and result[-1].number is not None:
            last = result[-1]
            product = float(last.number or 0.0) * float(step.number or 0.0)
            result[-1] = Step("times", product, written=(*last.written, *step.written))
        else:
            result.append(step)
    return tuple(step for step in result if step != Step("times", 1.0))


# Names of labels of samples and heads; none is that of a tensor in the code of a lowering.


class _Naming:
    """Names for labels by what they count: b h … i … j … c … e …"""

    def __init__(self, found: Found, match: Match) -> None:
        tracer: Tracer = found.tracer
        assert found.value is not None
        self.tracer, self._match = tracer, match
        steps, after = ([self._whole(step) for step, _ in each] for each in (found.steps, found.after))
        leaves = {"query": found.query, "key": found.key, "value": found.value}
        axes: dict[str, Axes] = {role: () if leaf is None else leaf.axes for role, leaf in leaves.items()}
        axes |= {"output": found.output, "weights": found.weights}
        labels = sorted_labels({role: tracer.flat(own) for role, own in axes.items()}, steps, after)
        mixed = [step.new for step in (*steps, *after) if step.kind == "mix"]
        heads = dict.fromkeys((*renamed(labels.batch, steps, back=True), *mixed))
        self._names = letters(heads, labels.queries, labels.keys, labels.channels, labels.features)
        self.one_query = labels.queries[0] if len(labels.queries) == 1 else None
        self.one_key = labels.keys[0] if len(labels.keys) == 1 else None
        self._queries, self._keys = set(labels.queries), set(labels.keys)

    def _whole(self, step: Step) -> Step:
        """The step with its labels resolved; refuses where one was taken apart."""
        if step.kind != "mix":
            return step
        old, new = (self.tracer.flat([(label,)]) for label in (step.old, step.new))
        self._match.require(len(old) == len(new) == 1, "heads that are mixed are taken apart elsewhere")
        return replace(step, old=old[0], new=new[0])

    def is_padding(self, leaf: Leaf) -> bool:
        """Whether a mask depends on keys but not on queries."""
        own = set(self.tracer.flat(leaf.axes))
        return bool(own & self._keys) and not own & self._queries

    def layout(self, axes: Axes) -> tuple[tuple[str, ...], ...]:
        """Axes in names."""
        known = self.tracer.resolve(axes)
        return tuple(tuple(self._names.setdefault(label, f"o{len(self._names)}") for label in axis) for axis in known)

    def text(self, axes: Axes) -> str:
        """Axes as a layout is written."""
        return shown(self.layout(axes))

    def steps(
        self, steps: Sequence[tuple[Step, Leaf | None]], role: str, mixer: str
    ) -> tuple[tuple[Step, ...], dict[str, Leaf]]:
        """Steps with roles and layouts for their operands, and the operands."""
        operands: dict[str, Leaf] = {}
        result = []
        for step, leaf in steps:
            if leaf is None:
                result.append(step)
                continue
            own = step.role or (mixer if step.kind == "mix" else role)
            name = own if own not in operands else f"{own}{len(operands) + 1}"
            operands[name] = leaf
            result.append(self._named(replace(step, role=name, layout=self.text(leaf.axes))))
        return tuple(result), operands

    def _named(self, step: Step) -> Step:
        if step.kind != "mix":
            return step
        whole = self._whole(step)
        return replace(whole, old=self._names[whole.old], new=self._names[whole.new])

    def sizes(self, layouts: Iterable[Axes]) -> tuple[tuple[str, int], ...]:
        """Fixed extents of the labels that occur in merged axes."""
        return self.tracer.sizes(layouts, self._names)
