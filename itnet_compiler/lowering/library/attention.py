"""Library lowering of ``Attention``: the fused operator wherever it computes the same, else products and a softmax.

Fused: scores of the form scale·⟨q, k⟩·a + m with hidden positions, no weights returned and nothing done to them, and
more than one query (for one, copies of keys and values cost more than is saved). The operator gives a query that may
attend to nothing zeros; the source gives it NaN (all scores −∞) or the mean of the values (all scores one finite
number), which is restored here. Dropout stays written out, since the operator draws in an order of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...ir.attention import Attention
from ...ir.kernel import Spec
from ...ir.layout import Arranger, Layout, labels_of, ordered, parse
from ...ir.steps import Step, renamed
from ..attention_names import NAMES
from ..base import Lowered

__all__ = ["KERNEL", "fused_form", "lower", "written_out"]

KERNEL = Attention

# exp of scores this far below the others is 0 in every dtype; nearer ones may still count.
_HIDDEN = -6e4


@dataclass
class FusedForm:
    """scale·⟨q·Π factors, k⟩ + Σ added, with −∞ (or ``number``) where a position is hidden.

    Attributes:
        scale: Of the product.
        factors: Operands, without labels of the keys, that the queries are multiplied by.
        shifts: Operands, without labels of the keys, that are added: they change no weight, and get a gradient of 0.
        added: (operand, number it is multiplied by).
        hidden: Steps ``fill`` and ``keep``.
        number: What the scores of hidden positions are.
        zero: Whether a query that sees nothing gives 0, as the fused operator has it.
        causal: Steps ``causal``.
    """

    scale: float = 1.0
    factors: list[Step] = field(default_factory=list)
    shifts: list[Step] = field(default_factory=list)
    added: list[tuple[Step, float]] = field(default_factory=list)
    hidden: list[Step] = field(default_factory=list)
    number: float = -math.inf
    zero: bool = False
    causal: list[Step] = field(default_factory=list)


def fused_form(kernel: Attention) -> FusedForm | str:
    """The steps of ``kernel`` as the fused operator takes them, or why it cannot."""
    zero = kernel.after == (Step("nan_to_num"),)
    if kernel.after and not zero:
        return f"the weights are changed ({kernel.after[0]})"
    if not kernel.query:
        return "the scores are given"
    if kernel.returns_weights:
        return "the weights are returned"
    if kernel.sink:
        return "a sink takes part in the softmax"
    if not kernel.labels.queries:
        return "a single query, whose products are the smaller part"
    form, keys = FusedForm(zero=zero), set(kernel.labels.keys)
    for step in kernel.steps:
        if step.kind == "times" and not step.role:
            number = float(step.number or 0.0)
            if form.hidden and not (number > 0 and form.number == -math.inf):
                return "hidden scores are multiplied"
            form.scale *= number
            form.added = [(mask, factor * number) for mask, factor in form.added]
        elif step.kind in ("times", "over"):
            if form.added or form.hidden or keys & set(labels_of(parse(step.layout))):
                return f"the scores are multiplied by {step.role}, not only the queries"
            form.factors.append(step)
        elif step.kind in ("plus", "minus") and step.role:
            if form.hidden and form.number != -math.inf:
                return "something is added to hidden scores that are finite"
            if step.hides or keys & set(labels_of(parse(step.layout))):
                form.added.append((step, 1.0 if step.kind == "plus" else -1.0))
            else:
                form.shifts.append(step)
        elif step.kind in ("fill", "keep"):
            number = float(step.number or 0.0)
            if number > _HIDDEN or (form.hidden and number != form.number):
                return f"{number:.3g} in place of a score is not negligible"
            form.hidden.append(step)
            form.number = number
        elif step.kind == "causal":
            form.causal.append(step)
        elif step.kind == "mix":
            return "heads are mixed"
        elif step.kind != "plus":
            return f"{step.kind} of the scores"
    if form.causal and (form.added or form.hidden or len(form.causal) > 1):
        return "a causal mask and another one"
    return form


def lower(spec: Spec) -> Lowered:
    """One Python function, written for the layouts of the node."""
    kernel = spec.kernel
    assert isinstance(kernel, Attention)
    form = fused_form(kernel)
    if isinstance(form, str):
        return written_out(spec, form)
    writer = _Writer(kernel, "fused")
    writer.fused(form)
    return _compiled(spec, writer)


def written_out(spec: Spec, why: str) -> Lowered:
    """Products and a softmax; ``why`` is said in the source."""
    assert isinstance(spec.kernel, Attention)
    writer = _Writer(spec.kernel, f"written out: {why}")
    writer.written_out()
    return _compiled(spec, writer)


def _compiled(spec: Spec, writer: _Writer) -> Lowered:
    source = writer.source(spec.operands)
    scope: dict[str, Any] = dict(NAMES)
    exec(compile(source, f"<itnet attention {writer.kernel.query} {writer.kernel.key}>", "exec"), scope)
    arguments = ", ".join(spec.operands)
    return Lowered(spec.operands, f"integral({arguments})", {"integral": scope["integral"]}, text=source)


class _Writer:
    """Writes the body; ``b``, ``i``, ``j`` … are extents of labels, ``q``, ``k``, ``v`` the operands as used."""

    def __init__(self, kernel: Attention, note: str) -> None:
        self.kernel, self.labels, self.note = kernel, kernel.labels, note
        self.arranger = Arranger(kernel.layouts, dict(kernel.sizes))
        self.lines = self.arranger.lines
        for role, start in kernel.starts.items():
            self.put(role, f"padded({role}, {start})")

    def source(self, operands: tuple[str, ...]) -> str:
        body = "".join(f"    {line}\n" for line in self.lines)
        return f"def integral({', '.join(operands)}):  # {self.note}\n{body}"

    def put(self, name: str, expression: str) -> None:
        self.lines.append(f"{name} = {expression}")

    def give(self, result: str, layout: Layout, weights: str = "") -> None:
        """Return ``result``, which has one axis a batch group, then queries and features."""
        text = ordered(self.arranger.arranged(result, parse(self.kernel.output), layout=layout), self.kernel.memory)
        self.lines.append(f"return {text}, {weights}" if weights else f"return {text}")

    # ── the fused operator

    def fused(self, form: FusedForm) -> None:
        labels = self.labels
        lead, queries, shared = self._lead(form)
        narrow = tuple(tuple(label for label in axis if label not in shared) for axis in lead)
        self.put("q", self._whole("query", (*lead, queries, labels.channels)))
        self.put("k", self._whole("key", (*narrow, labels.keys, labels.channels)))
        self.put("v", self._whole("value", (*narrow, labels.keys, labels.features)))
        for step in form.factors:
            factor = self._operand(step, (*lead, queries, ()))
            self.put("q", f"q {_SIGNS[step.kind]} {factor}.to(q.dtype)")
        mask = self._mask(form, (*lead, queries, labels.keys))
        flags = f"0.0, {bool(form.causal)}, scale={form.scale!r}, enable_gqa={bool(shared)}"
        self.put("y", f"attention(q, k, v, {mask}, {flags})")
        hides = (form.hidden and form.number == -math.inf) or any(step.hides for step, _ in form.added)
        if hides and not form.zero:
            bare = form.hidden and not form.added
            self.put("y", "without_seen(y, m, v)" if bare else "without_keys(y, m)")
        for step in form.shifts:
            self.put("y", f"y + 0.0 * {self.arranger.arranged(step.role, (*lead, queries, ()))}")
        self.give("y", (*lead, queries, labels.features))

    def _lead(self, form: FusedForm) -> tuple[Layout, tuple[str, ...], tuple[str, ...]]:
        """The two leading axes of the operator, the axis of queries, and the labels of heads that share keys.

        Heads that share keys and values are further queries of theirs; where a mask does not tell them apart, they
        stay heads, so that it need not be repeated.
        """
        batch, queries = self.labels.batch, self.labels.queries
        masks = [step for step, _ in form.added] + form.hidden + form.causal
        told = {label for step in masks for label in labels_of(parse(step.layout))}
        shared = tuple(label for label in queries if label not in told) if masks else ()
        if shared and len(shared) < len(queries):
            own = tuple(label for label in queries if label not in shared)
            if len(batch) < 2:
                return (batch, shared), own, shared
            return (batch[:-1], (batch[-1], *shared)), own, shared
        return (batch[:-1], batch[-1:]), queries, ()

    def _whole(self, role: str, target: Layout) -> str:
        """The operand with four axes; labels that it lacks are expanded, since the operator does not broadcast."""
        text = self.arranger.arranged(role, target)
        present = set(labels_of(self.kernel.layouts[role]))
        absent = [place for place, axis in enumerate(target) if axis and not present & set(axis)]
        if not absent:
            return text
        sizes = [
            " * ".join(self.arranger.extent(label) for label in axis) if place in absent else "-1"
            for place, axis in enumerate(target)
        ]
        return f"{text}.expand({', '.join(sizes)})"

    def _mask(self, form: FusedForm, scores: Layout) -> str:
        if not form.added and not form.hidden:
            return "None"
        parts = []
        for step, factor in form.added:
            text = self.arranger.arranged(step.role, scores)
            parts.append(text if factor == 1.0 else f"{text} * {factor!r}")
        if parts:
            self.put("m", " + ".join(parts))
            self.put("m", "m.to(q.dtype)")
        allowed = []
        for step in form.hidden:
            text = self.arranger.arranged(step.role, scores)
            allowed.append(text if step.kind == "keep" else f"~{text}")
        hides = any(step.hides for step, _ in form.added)
        if not allowed:
            if hides:
                self.put("m", "shifted(m)")
            return "m"
        self.put("seen", " & ".join(allowed))
        if form.number != -math.inf:
            # A query that sees nothing takes the mean: equal scores over all keys.
            self.put("none", "~seen.any(-1, keepdim=True)")
            self.put("seen", "seen | none")
            if parts:
                self.put("m", "m.masked_fill(none, 0.0)")
            self.put("q", "q.masked_fill(none, 0.0)")
        self.put("m", "m.masked_fill(~seen, -inf)" if parts else "seen")
        if parts and hides:
            self.put("m", "shifted(m)")
        return "m"

    # ── products and a softmax

    def written_out(self) -> None:
        kernel, labels = self.kernel, self.labels
        scores = (*_single(kernel.first), labels.queries, labels.keys)
        steps = kernel.steps
        for factor in (factor for step in steps for factor in step.written if factor.of in ("query", "key")):
            self.put(factor.of, f"{factor.of} {factor.sign} {factor.number!r}")
        held = [set(labels_of(kernel.layouts.get(role, ()))) for role in ("query", "key")]
        if not kernel.query:
            self.put("s", self.arranger.arranged(steps[0].role, scores))
            steps = steps[1:]
        elif all(set(kernel.first) - own for own in held):  # each side would be repeated for what the other one has
            layouts = (kernel.layouts["query"], kernel.layouts["key"])
            self._grouped_product("s", ("query", "key"), layouts, labels.channels, scores)
        else:
            query = self.arranger.arranged("query", (*_single(kernel.first), labels.queries, labels.channels))
            key = self.arranger.arranged("key", (*_single(kernel.first), labels.channels, labels.keys))
            self.put("s", f"matmul({query}, {key})")
        for step in steps:
            scores = self._step("s", step, scores)
        if kernel.sink:
            self.put("z", self.arranger.arranged("sink", (*scores[:-1], ())))
            self.put("w", f"softmax_beside(s, z, {kernel.wide})")
        else:
            self.put("w", "wide_softmax(s)" if kernel.wide else "softmax(s, -1)")
        for step in kernel.after:
            scores = self._step("w", step, scores)
        lead, weights = _single(kernel.last), ""
        result = (*lead, labels.queries, labels.features)
        if set(kernel.last) - set(labels_of(kernel.layouts["value"])):
            self._grouped_product("y", ("w", "value"), (scores, kernel.layouts["value"]), labels.keys, result)
        elif self._features_first():  # as the source has it: gradients come in the same order of memory
            result = (*lead, labels.features, labels.queries)
            self.put("y", f"matmul({self.arranger.arranged('value', (*lead, labels.features, labels.keys))}, w.mT)")
        else:
            self.put("y", f"matmul(w, {self.arranger.arranged('value', (*lead, labels.keys, labels.features))})")
        if kernel.returns_weights:
            target = tuple(renamed(axis, kernel.after) for axis in parse(kernel.weights))
            weights = self.arranger.arranged("w", target, layout=scores)
        self.give("y", result, weights)

    def _grouped_product(
        self, name: str, factors: tuple[str, str], layouts: tuple[Layout, Layout], summed: tuple[str, ...], to: Layout
    ) -> None:
        """Σ over ``summed`` of two factors, in the layout ``to``: labels of one factor alone are rows or columns."""
        first, second = (set(labels_of(layout)) for layout in layouts)
        wanted = labels_of(to)
        both: Layout = _single(label for label in wanted if label in first and label in second)
        rows = tuple(label for label in wanted if label in first - second)
        columns = tuple(label for label in wanted if label in second - first)
        sides = [
            self.arranger.arranged(factor, target, layout=layout)
            for factor, target, layout in zip(
                factors, ((*both, rows, summed), (*both, summed, columns)), layouts, strict=True
            )
        ]
        self.put(name, f"matmul({sides[0]}, {sides[1]})")
        self.put(name, self.arranger.arranged(name, to, layout=(*both, rows, columns)))

    def _features_first(self) -> bool:
        """Whether the values lie in memory with their features before the positions."""
        held = (*self.labels.keys, *self.labels.features)
        first = next((label for label in labels_of(self.kernel.layouts["value"]) if label in held), "")
        return first in self.labels.features

    def _operand(self, step: Step, target: Layout) -> str:
        """The operand of a step; one without axes stays so, since it takes no part in the promotion of dtypes."""
        return self.arranger.arranged(step.role, target) if step.layout else step.role

    def _step(self, name: str, step: Step, scores: Layout) -> Layout:
        """The lines of one step, and the axes behind it."""
        if step.kind == "mix":
            place = scores.index((step.old,))
            new = (*scores[:place], (step.new,), *scores[place + 1 :])
            others = new[:place] + new[place + 1 : -2]
            matrix = self.arranger.arranged(step.role, (*others, (step.new,), (step.old,)))
            self.put(name, f"mixed({name}, {matrix}, {place})")
            return new
        if step.kind == "causal":
            layout = parse(step.layout)
            sizes = ", ".join(self.arranger.extent(label) for label in labels_of(layout))
            self.put("later", f"ones({sizes}, dtype=bool, device=value.device).triu(1)")
            later = self.arranger.arranged("later", scores, layout=layout)
            self.put(name, f"{name}.masked_fill({later}, -inf)")
            return scores
        if step.written:
            for factor in (factor for factor in step.written if factor.of == "scores"):
                self.put(name, f"{name} {factor.sign} {factor.number!r}")
            return scores
        operand = self._operand(step, scores) if step.role else repr(step.number)
        if step.kind in _SIGNS:
            self.put(name, f"{name} {_SIGNS[step.kind]} {operand}")
        elif step.kind in ("fill", "keep"):
            condition = operand if step.kind == "fill" else f"~{operand}"
            self.put(name, f"{name}.masked_fill({condition}, {step.number!r})")
        elif step.kind == "normalise":
            eps = f" + {step.number!r}" if step.number else ""
            self.put(name, f"{name} / ({name}.sum(-1, keepdim=True){eps})")
        elif step.kind == "dropout":
            self.put(name, f"dropout({name}, {step.number!r}, True)")
        else:
            self.put(name, f"{step.kind}({name})")
        return scores


def _single(labels: Iterable[str]) -> Layout:
    return tuple((label,) for label in labels)


_SIGNS = {"times": "*", "over": "/", "plus": "+", "minus": "-"}
