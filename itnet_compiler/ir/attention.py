"""Softmax attention in any layout and with any scores: the normal form of attention that is written out.

The operator ``scaled_dot_product_attention`` itself is the kernel ``Softmax``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Keys
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .layout import Layout, contracted, label_sizes, labels_of, merged, parse
from .softmax import normalised

__all__ = ["LOW", "Attention", "Labels", "Step"]

# A number up to this in place of a score, or added to one, hides the position.
LOW = -9999.0

_FUNCTIONS = {"tanh": torch.tanh, "nan_to_num": torch.nan_to_num}


@dataclass(frozen=True)
class Step:
    """One elementwise map of the scores or the weights s(…, i, j).

    Attributes:
        kind: ``times`` (s·a), ``over`` (s/a), ``plus`` (s + a), ``minus`` (s − a), ``fill`` (number where the operand
            is true), ``keep`` (number where it is false), ``causal`` (−∞ where the second label of ``layout`` is beyond
            the first), ``tanh``, ``nan_to_num`` or ``dropout`` (with probability
            ``number``).
        number: a, where it is no operand; what is filled in.
        role: The operand, where there is one.
        layout: Of that operand.
        pattern: What the operand lets through, where that is proven: ``padding``, ``window of 2 before …``
        hides: Whether an operand that is added may hold −∞, or numbers so low that they hide a position.
    """

    kind: str
    number: float | None = None
    role: str = ""
    layout: str = ""
    pattern: str = ""
    hides: bool = False

    def __str__(self) -> str:
        of = self.role or (f"{self.number:.6g}" if self.number is not None else "")
        texts = {"times": f"·{of}", "over": f"/{of}", "plus": f"+{of}", "minus": f"-{of}", "dropout": f"dropout={of}"}
        if self.kind in ("fill", "keep"):
            texts[self.kind] = f"{self.number:.3g} {'where' if self.kind == 'fill' else 'unless'} {self.role}"
        if self.pattern:
            return f"{texts[self.kind]}: {self.pattern}"
        return texts.get(self.kind, self.kind)


@dataclass(frozen=True)
class Labels:
    """The labels of an attention by what they count.

    Attributes:
        batch: Samples and heads: those of the output that keys or values have too.
        queries: Positions x.
        keys: Positions x', which are summed over.
        channels: Summed in the product of queries and keys.
        features: Of the values alone.
    """

    batch: tuple[str, ...]
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    channels: tuple[str, ...]
    features: tuple[str, ...]


@dataclass(frozen=True)
class Attention(Kernel):
    """Softmax attention with labelled axes (see ``ir.layout``), for queries q, keys k and values v:

        s(b, i, j) = Σ_c q[b, i, c]·k[b, j, c], then each of ``steps`` in turn
        w(b, i, j) = exp(s(b, i, j)) / Σ_j' exp(s(b, i, j')), then each of ``after``
        y[b, i, e] = Σ_j w(b, i, j)·v[b, j, e]

    where an operand need not have all labels (it does not depend on those it lacks). A query whose scores are all −∞
    has NaN weights, as in the formula.

    Attributes:
        query: Layout of the operand.
        key: Layout of the operand.
        value: Layout of the operand.
        output: Layout of the result.
        weights: Layout of the weights in the source: its order of labels is that in which dropout draws.
        steps: Of the scores.
        after: Of the weights.
        sizes: Extents of labels that are fixed.
        returns_weights: Whether the weights are a second output.
        wide: Whether a softmax of half-precision scores is taken in float32.
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
    memory: tuple[int, ...] = ()

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Layout of every operand by role."""
        found = {"query": parse(self.query), "key": parse(self.key), "value": parse(self.value)}
        return found | {step.role: parse(step.layout) for step in (*self.steps, *self.after) if step.role}

    @cached_property
    def labels(self) -> Labels:
        """Labels by what they count, each kind in the order of the weights or the output."""
        query, key, value = (set(labels_of(self.layouts[role])) for role in ("query", "key", "value"))
        output, weights = labels_of(parse(self.output)), labels_of(parse(self.weights))
        inside = {label for step in (*self.steps, *self.after) for label in labels_of(parse(step.layout))}
        features = tuple(label for label in output if label in value - query - key - inside)
        keys = tuple(label for label in weights if label not in output)
        queries = tuple(label for label in weights if label in output and label not in key | value)
        batch = tuple(label for label in weights if label not in (*keys, *queries))
        channels = tuple(
            label for label in labels_of(self.layouts["query"]) if label in key and label not in (*batch, *keys)
        )
        return Labels(batch, queries, keys, channels, features)

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
        parts += ["returns_weights"] if self.returns_weights else []
        text = f"{self.family}({', '.join(parts)})" if parts else self.family
        layouts = f"(q[{self.query}] k[{self.key}] v[{self.value}] -> [{self.output}])"
        return text if self._is_plain() else f"{text} {layouts}"

    def _is_plain(self) -> bool:
        """Whether the layouts are those of the fused operator: (…, L, D), (…, S, D), (…, S, V) → (…, L, V)."""
        labels = self.labels
        ends = {
            "query": (labels.queries, labels.channels),
            "key": (labels.keys, labels.channels),
            "value": (labels.keys, labels.features),
        }
        batch = tuple((label,) for label in labels.batch)
        layouts = self.layouts | {"output": parse(self.output)}
        ends["output"] = (labels.queries, labels.features)
        return all(layouts[role] == (*batch, *end) for role, end in ends.items())

    def properties(self, domain: Domain) -> frozenset[str]:
        """Linear in the values; normalised where nothing happens to the weights."""
        return frozenset({"linear"} if self.after else {"linear", "normalised"})

    def extents(self, operands: Operands) -> dict[str, int]:
        """Extent of every label."""
        return label_sizes(self.layouts, {role: operands[role] for role in self.layouts}, dict(self.sizes))

    def evaluate(self, domain: Domain, **operands: Any) -> Any:
        """y, or (y, w) with ``returns_weights``. Dropout draws in the order of the source's weights."""
        weights = self.kernel_matrix(domain, **operands)
        output = self.apply_matrix(domain, weights, **operands)
        if not self.returns_weights:
            return output
        sizes, labels = self.extents(operands), self.labels
        order = (*labels.batch, *labels.queries, *labels.keys)
        split = weights.reshape([sizes[label] for label in order])
        return output, merged(split, order, parse(self.weights), sizes)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """w, (…, L, S): batch labels, then one axis of query positions and one of key positions."""
        sizes, labels = self.extents(operands), self.labels
        order = (*labels.batch, *labels.queries, *labels.keys)

        def split(role: str) -> tuple[Tensor, tuple[str, ...]]:
            found = labels_of(self.layouts[role])
            return operands[role].reshape([sizes[label] for label in found]), found

        def spread(role: str) -> Tensor:
            tensor, own = split(role)
            tensor = tensor.permute([own.index(label) for label in order if label in own])
            return tensor.reshape([sizes[label] if label in own else 1 for label in order])

        scores = contracted(
            (split("query"), split("key")),
            tuple(
                label
                for label in order
                if label in (*labels_of(self.layouts["query"]), *labels_of(self.layouts["key"]))
            ),
        )
        own = [
            label for label in order if label in (*labels_of(self.layouts["query"]), *labels_of(self.layouts["key"]))
        ]
        scores = scores.reshape([sizes[label] if label in own else 1 for label in order])
        scores = scores.expand([sizes[label] for label in order])
        for step in self.steps:
            if step.kind == "causal":
                later = torch.ones([sizes[label] for label in step.layout.split()], dtype=torch.bool).triu(1)
                shape = [sizes[label] if label in step.layout.split() else 1 for label in order]
                scores = scores.masked_fill(later.to(scores.device).reshape(shape), -math.inf)
                continue
            scores = _apply(step, scores, spread(step.role) if step.role else None)
        flat = scores.reshape([*(sizes[label] for label in labels.batch), *self._lengths(sizes)])
        weights = normalised(flat, zero=False)
        weights = weights.reshape([sizes[label] for label in order])
        for step in self.after:
            weights = _apply(step, weights, spread(step.role) if step.role else None)
        return weights.reshape(flat.shape)

    def _lengths(self, sizes: dict[str, int]) -> list[int]:
        return [math.prod(sizes[label] for label in group) for group in (self.labels.queries, self.labels.keys)]

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_j w·v in the layout of the output."""
        sizes, labels = self.extents(operands), self.labels
        order = (*labels.batch, *labels.queries, *labels.keys)
        value = labels_of(self.layouts["value"])
        result = (*labels.batch, *labels.queries, *labels.features)
        weights = matrix.reshape([sizes[label] for label in order])
        summed = contracted(((weights, order), (operands["value"].reshape([sizes[v] for v in value]), value)), result)
        return merged(summed, result, parse(self.output), sizes)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """Small extents by label; no dropout."""
        found = dict.fromkeys(label for layout in self.layouts.values() for label in labels_of(layout))
        small = dict(zip(found, (2, 3, 5, 4, 7, 6, 8, 2, 2, 2, 2, 2, 2, 2), strict=False))
        drawn = replace(
            self,
            sizes=tuple((label, small[label]) for label, _ in self.sizes),
            after=tuple(step for step in self.after if step.kind != "dropout"),
        )
        return Sample(Spec(drawn, domain, "attention", roles), drawn._draws(small))

    def _draws(self, sizes: dict[str, int]) -> dict[str, Draw]:
        kinds = {step.role: step.kind for step in (*self.steps, *self.after) if step.role}
        return {
            role: Draw(
                tuple(math.prod(sizes[label] for label in axis) for axis in layout),
                "bool" if kinds.get(role) in ("fill", "keep") else "float",
            )
            for role, layout in self.layouts.items()
        }

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """2·(C + V) flops for each pair of positions, and 5 for its softmax. Bytes of operands and outputs."""
        sizes, labels = self.extents(operands), self.labels
        pairs = math.prod(sizes[label] for label in (*labels.batch, *labels.queries, *labels.keys))
        width = math.prod(sizes[c] for c in labels.channels) + math.prod(sizes[e] for e in labels.features)
        moved = [*operands.values(), *outputs]
        flops = pairs * (2 * width + 5 + len(self.steps) + len(self.after))
        return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        plain = cls("b h i c", "b h j c", "b h j e", "b h i e", "b h i j")
        heads = cls("b i (h c)", "b j (h c)", "b j (h e)", "b i (h e)", "b h i j", sizes=(("h", 3),))
        flat = cls("b i c", "b j c", "b j e", "b i e", "b i j")
        scale, mask = Step("times", 0.3), Step("plus", role="mask", layout="b 1 i j", hides=True)
        hidden = Step("keep", -math.inf, "seen", "b 1 1 j")
        kept = Step("keep", -65504.0, "seen", "i j")
        causal = Step("causal", layout="i j")
        cap = (Step("times", 0.1), Step("tanh"), Step("times", 10.0))
        sizes = {"b": 2, "h": 3, "g": 2, "i": 5, "j": 7, "c": 4, "e": 6, "i1": 3, "i2": 2, "j1": 2, "j2": 4}
        cases = [
            plain,
            replace(plain, steps=(scale,)),
            replace(plain, steps=(scale, mask)),
            replace(plain, steps=(mask, scale)),
            replace(plain, steps=(hidden, scale)),
            replace(plain, steps=(kept,)),
            replace(plain, steps=(replace(kept, kind="fill"),)),
            replace(plain, steps=(scale, kept, mask)),
            replace(plain, steps=(*cap, mask)),
            replace(plain, steps=(Step("times", role="factor", layout="h 1 1"), mask)),
            replace(plain, steps=(Step("times", role="factor", layout="i j"),)),
            replace(plain, steps=(replace(mask, kind="minus"), scale)),
            replace(plain, after=(Step("times", role="factor", layout="b 1 i j"),)),
            replace(plain, steps=(hidden,), after=(Step("nan_to_num"),)),
            replace(plain, steps=(scale, causal)),
            replace(plain, steps=(causal, mask), returns_weights=True),
            replace(heads, steps=(causal, scale)),
            cls("b h g i c", "b h j c", "b h j e", "b h g i e", "b h g i j", steps=(causal,)),
            replace(plain, steps=(mask,), returns_weights=True),
            replace(heads, steps=(scale,)),
            replace(heads, steps=(Step("plus", role="mask", layout="(b h) i j"),)),
            replace(heads, returns_weights=True),
            flat,
            replace(heads, memory=(0, 1, 2)),
            replace(plain, memory=(0, 2, 1, 3), steps=(kept,)),
            replace(flat, key="b c j", value="b e j", output="b e i", weights="b j i"),
            cls("i c", "j c", "j e", "i e", "i j"),
            cls("b h g i c", "b h j c", "b h j e", "b h g i e", "b h g i j", steps=(scale,)),
            cls("b h g i c", "b h j c", "b h j e", "b h g i e", "b h g i j", steps=(kept,)),
            cls("i c", "b j c", "b j e", "b i e", "b i j"),
            cls("b h i c", "b j c", "b j e", "b h i e", "b h i j"),
            cls(
                "b i1 i2 c",
                "b j1 j2 c",
                "b j1 j2 e",
                "b (i1 i2) e",
                "b i1 i2 j1 j2",
                steps=(
                    Step("plus", role="rows", layout="b i1 i2 j1 1"),
                    Step("plus", role="columns", layout="b i1 i2 1 j2"),
                ),
            ),
        ]
        extents = [sizes, sizes | {"i": 63, "j": 7}, sizes | {"i": 1, "j": 1}, sizes | {"i": 0}, sizes | {"b": 0}]
        found = []
        for number, (kernel, size) in enumerate(product(cases, extents)):
            if number % len(extents) == 0 or kernel in (cases[2], cases[5], cases[7], cases[12], cases[19], cases[24]):
                fixed = replace(kernel, sizes=tuple((label, size[label]) for label, _ in kernel.sizes))
                found.append(Sample(Spec(fixed, Keys(), "attention", tuple(fixed.layouts)), fixed._draws(size)))
        return found


def _apply(step: Step, scores: Tensor, operand: Tensor | None) -> Tensor:
    other: Any = step.number if operand is None else operand
    if step.kind == "times":
        return scores * other
    if step.kind == "over":
        return scores / other
    if step.kind == "plus":
        return scores + other
    if step.kind == "minus":
        return scores - other
    if step.kind == "fill":
        return scores.masked_fill(other, float(step.number or 0.0))
    if step.kind == "keep":
        return scores.masked_fill(~other, float(step.number or 0.0))
    if step.kind == "dropout":
        return torch.dropout(scores, float(step.number or 0.0), True)
    return _FUNCTIONS[step.kind](scores)
