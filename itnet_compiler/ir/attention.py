"""Softmax attention in any layout and with any scores: the normal form of attention that is written out.

The operator ``scaled_dot_product_attention`` itself is the kernel ``Softmax``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain
from .formulas import attention_formula
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .layout import Layout, contracted, label_sizes, labels_of, merged, parse
from .softmax import normalised
from .steps import Labels, Order, Step, apply_step, padded, renamed, sorted_labels

__all__ = ["Attention"]


@dataclass(frozen=True)
class Attention(Kernel):
    """Softmax attention with labelled axes (see ``ir.layout``), for queries q, keys k and values v:

        s(b, i, j) = Σ_c q[b, i, c]·k[b, j, c], then each of ``steps`` in turn
        w(b, i, j) = exp(s(b, i, j)) / Σ_j' exp(s(b, i, j')), then each of ``after``
        y[b, i, e] = Σ_j w(b, i, j)·v[b, j, e]

    where an operand need not have all labels (it does not depend on those it lacks). A query whose scores are all −∞
    has NaN weights, as in the formula. A ``sink`` is a further score of every query, whose weight goes to no value: it
    adds exp(sink) to the denominator ("Efficient Streaming Language Models with Attention Sinks", 2023). Scores that
    are used elsewhere too, or are no products, are given: without queries and keys s is 0, and the first step adds
    ``scores``. A step ``mix`` sums over heads ("Talking-Heads Attention", 2020): ``labels`` are those of the softmax,
    and mixed heads have other labels before (``first``) or behind it (``last``).

    Attributes:
        query: Layout of the operand; empty where the scores are given.
        key: Layout of the operand; likewise.
        value: Layout of the operand.
        output: Layout of the result.
        weights: Layout of the weights in the source: its order of labels is that in which dropout draws.
        steps: Of the scores.
        after: Of the weights.
        sizes: Extents of labels that are fixed.
        returns_weights: Whether the weights are a second output.
        wide: Whether a softmax of half-precision scores is taken in float32.
        sink: Layout of the operand ``sink``, or empty where there is none.
        memory: Axes of the result in the order in which they lie in memory, slowest first, where later views rely on
            it; empty where any order will do.
    """

    family: ClassVar[str] = "softmax"
    value_map: ClassVar[str] = "value"

    query: str
    key: str
    value: str
    output: str
    weights: str
    steps: tuple[Step, ...] = ()
    after: tuple[Step, ...] = ()
    sizes: tuple[tuple[str, int], ...] = ()
    returns_weights: bool = False
    wide: bool = False
    sink: str = ""
    memory: tuple[int, ...] = ()

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Layout of every operand by role."""
        found = {"query": parse(self.query), "key": parse(self.key)} if self.query else {}
        found["value"] = parse(self.value)
        found |= {step.role: parse(step.layout) for step in (*self.steps, *self.after) if step.role}
        return found | ({"sink": parse(self.sink)} if self.sink else {})

    @cached_property
    def labels(self) -> Labels:
        """Labels of the softmax by what they count, each kind in the order of the weights or the output."""
        layouts: dict[str, Layout] = {"query": (), "key": ()} | self.layouts
        layouts |= {"output": parse(self.output), "weights": parse(self.weights)}
        return sorted_labels({role: labels_of(layout) for role, layout in layouts.items()}, self.steps, self.after)

    @cached_property
    def first(self) -> tuple[str, ...]:
        """Batch labels of the product of queries and keys."""
        return renamed(self.labels.batch, self.steps, back=True)

    @cached_property
    def last(self) -> tuple[str, ...]:
        """Batch labels of the sum of values."""
        return renamed(self.labels.batch, self.after)

    @property
    def scale(self) -> float:
        """Product of all numbers that the scores are multiplied by before anything else happens to them."""
        found = 1.0
        for step in self.steps:
            if step.kind != "times" or step.number is None:
                break
            found *= step.number
        return found

    @property
    def dropout(self) -> float:
        """Probability with which a weight, or a score, is zeroed."""
        return next((float(step.number or 0.0) for step in (*self.after, *self.steps) if step.kind == "dropout"), 0.0)

    def describe(self) -> str:
        """``softmax(scale=0.125, +mask)``, with the layouts where they are not those of the fused operator."""
        first = [f"scale={self.scale:.6g}"] if self.scale != 1.0 else []
        rest = list(self.steps)
        while rest and rest[0].kind == "times" and rest[0].number is not None:
            rest.pop(0)
        parts = [*first, *map(str, rest), *(f"then {step}" for step in self.after)]
        parts += ["sink"] if self.sink else []
        parts += ["returns_weights"] if self.returns_weights else []
        text = f"{self.family}({', '.join(parts)})" if parts else self.family
        pair = f"q[{self.query}] k[{self.key}] " if self.query else ""
        return text if self._is_plain() else f"{text} ({pair}v[{self.value}] -> [{self.output}])"

    def formula(self) -> list[str]:
        """In the labels of the node."""
        return attention_formula(self)

    def _is_plain(self) -> bool:
        """Whether the layouts are those of the fused operator: (…, L, D), (…, S, D), (…, S, V) → (…, L, V)."""
        labels = self.labels
        ends = {
            "query": (self.first, labels.queries, labels.channels),
            "key": (self.first, labels.keys, labels.channels),
            "value": (self.last, labels.keys, labels.features),
            "output": (self.last, labels.queries, labels.features),
        }
        layouts = self.layouts | {"output": parse(self.output)}
        return bool(self.query) and all(
            layouts[role] == (*((label,) for label in batch), *end) for role, (batch, *end) in ends.items()
        )

    def properties(self, domain: Domain) -> frozenset[str]:
        """Linear in the values; normalised where nothing happens to the weights, and no sink takes a part of them."""
        return frozenset({"linear"} if self.after or self.sink else {"linear", "normalised"})

    def extents(self, operands: Operands) -> dict[str, int]:
        """Extent of every label."""
        return label_sizes(self.layouts, self._whole(operands), dict(self.sizes))

    @cached_property
    def starts(self) -> dict[str, tuple[int, ...]]:
        """Operands that are added to a part of the scores: the places before them."""
        return {step.role: step.start for step in self.steps if step.start}

    def _whole(self, operands: Operands) -> dict[str, Any]:
        """Operands by role, those added to a part of the scores with zeros for the rest."""
        found = {role: operands[role] for role in self.layouts}
        return found | {role: padded(found[role], start) for role, start in self.starts.items()}

    def evaluate(self, domain: Domain, **operands: Any) -> Any:
        """y, or (y, w) with ``returns_weights``. Dropout draws in the order of the source's weights."""
        weights = self.kernel_matrix(domain, **operands)
        output = self.apply_matrix(domain, weights, **operands)
        if not self.returns_weights:
            return output
        sizes, labels = self.extents(operands), self.labels
        order = (*self.last, *labels.queries, *labels.keys)
        split = weights.reshape([sizes[label] for label in order])
        target = tuple(renamed(axis, self.after) for axis in parse(self.weights))
        return output, merged(split, order, target, sizes)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """w, (…, L, S): batch labels, then one axis of query positions and one of key positions."""
        operands = self._whole(operands)
        sizes, labels = label_sizes(self.layouts, operands, dict(self.sizes)), self.labels

        def split(role: str) -> tuple[Tensor, Order]:
            found = labels_of(self.layouts[role])
            return operands[role].reshape([sizes[label] for label in found]), found

        def spread(role: str, order: Order) -> Tensor:
            tensor, own = split(role)
            tensor = tensor.permute([own.index(label) for label in order if label in own])
            return tensor.reshape([sizes[label] if label in own else 1 for label in order])

        def changed(scores: Tensor, order: Order, step: Step) -> tuple[Tensor, Order]:
            if step.kind == "mix":
                new = tuple(step.new if label == step.old else label for label in order)
                return contracted(((scores, order), split(step.role)), new), new
            if step.kind == "causal":
                later = torch.ones([sizes[label] for label in step.layout.split()], dtype=torch.bool).triu(1)
                shape = [sizes[label] if label in step.layout.split() else 1 for label in order]
                return scores.masked_fill(later.to(scores.device).reshape(shape), -math.inf), order
            if step.kind == "normalise":  # positions may be several axes, the last ones
                return apply_step(step, scores.flatten(-len(labels.keys)), None).reshape(scores.shape), order
            return apply_step(step, scores, spread(step.role, order) if step.role else None), order

        order = (*self.first, *labels.queries, *labels.keys)
        if self.query:
            pair = (split("query"), split("key"))
            own = tuple(label for label in order if label in pair[0][1] + pair[1][1])
            scores = contracted(pair, own).reshape([sizes[label] if label in own else 1 for label in order])
        else:
            scores = operands["value"].new_zeros([1 for _ in order])
        scores = scores.expand([sizes[label] for label in order])
        for step in self.steps:
            scores, order = changed(scores, order, step)
        extents = [sizes[label] for label in order]
        lead = [*(sizes[label] for label in labels.batch), *self._lengths(sizes)]
        if self.sink:
            wide = [1 if label in labels.keys else sizes[label] for label in order]
            sink = spread("sink", order).expand(wide).reshape([*lead[:-1], 1])
            weights = normalised(torch.cat([scores.reshape(lead), sink], -1), zero=False)[..., :-1]
        else:
            weights = normalised(scores.reshape(lead), zero=False)
        weights = weights.reshape(extents)
        for step in self.after:
            weights, order = changed(weights, order, step)
        return weights.reshape([*(sizes[label] for label in self.last), *self._lengths(sizes)])

    def _lengths(self, sizes: dict[str, int]) -> list[int]:
        return [math.prod(sizes[label] for label in group) for group in (self.labels.queries, self.labels.keys)]

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_j w·v in the layout of the output."""
        sizes, labels = self.extents(operands), self.labels
        order = (*self.last, *labels.queries, *labels.keys)
        value = labels_of(self.layouts["value"])
        result = (*self.last, *labels.queries, *labels.features)
        weights = matrix.reshape([sizes[label] for label in order])
        summed = contracted(((weights, order), (operands["value"].reshape([sizes[v] for v in value]), value)), result)
        return merged(summed, result, parse(self.output), sizes)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """Small extents by label; no dropout."""
        found = dict.fromkeys(label for layout in self.layouts.values() for label in labels_of(layout))
        small = dict(zip(found, (2, 3, 5, 4, 7, 6, 8, 2, 2, 2, 2, 2, 2, 2), strict=False))
        for role, start in self.starts.items():
            for axis, before in zip(self.layouts[role], start, strict=True):
                if before:
                    small[axis[0]] += 8 * before
        drawn = replace(
            self,
            sizes=tuple((label, small[label]) for label, _ in self.sizes),
            after=tuple(step for step in self.after if step.kind != "dropout"),
        )
        return Sample(Spec(drawn, domain, "attention", roles), drawn.draws(small))

    def draws(self, sizes: dict[str, int]) -> dict[str, Draw]:
        """How to draw the operands at these extents."""
        kinds = {step.role: step.kind for step in (*self.steps, *self.after) if step.role}
        return {
            role: Draw(
                tuple(
                    math.prod(sizes[label] for label in axis) - before
                    for axis, before in zip(layout, self.starts.get(role) or (0,) * len(layout), strict=True)
                ),
                "bool" if kinds.get(role) in ("fill", "keep") else "float",
            )
            for role, layout in self.layouts.items()
        }

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """2·(C + V) flops for each pair of positions, and 5 for its softmax. Bytes of operands and outputs.

        A step takes 1 more for each pair, or 2·H where H heads are mixed.
        """
        sizes, labels = self.extents(operands), self.labels
        pairs = math.prod(sizes[label] for label in (*self.first, *labels.queries, *labels.keys))
        width = math.prod(sizes[c] for c in labels.channels) + math.prod(sizes[e] for e in labels.features)
        moved = [*operands.values(), *outputs]
        steps = (*self.steps, *self.after)
        mixed = sum(2 * sizes[step.old] - 1 for step in steps if step.kind == "mix")
        flops = pairs * (2 * width + 5 + len(steps) + mixed)
        return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        from ._attention_samples import samples

        return samples()
