"""Family ``separable``: K(x, x') = φ(x)·ψ(x'), so that the sum over x' can be taken before x is known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

from torch import Tensor

from .domain import Domain, Keys
from .formulas import separable_formula
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .layout import Layout, contracted, label_sizes, labels_of, merged, parse
from .steps import Labels

__all__ = ["Separable"]


@dataclass(frozen=True)
class Separable(Kernel):
    """Linear, or kernelised, attention (arXiv 2006.16236, eq. 4–9) of features φ(q), ψ(k) that are computed before:

        K(b, i, j) = scale·Σ_c q[b, i, c]·k[b, j, c]·m(b, i, j)           0 for j > i with ``causal``
        y[b, i, e] = Σ_j K(b, i, j)·v[b, j, e] / Z(b, i)
        Z(b, i) = 1, or with ``normalised`` Σ_j K(b, i, j) + eps, or max(·, eps) with ``clamped``

    With ``softmaxed``, k[b, ·, c] is first normalised over all positions: k ← exp(k) / Σ_j exp(k), as in efficient
    attention (arXiv 1812.01243) and lambda layers (2102.08602).

    Without queries K(b, i, j) = scale·k[b, i, j]: a sum of values weighted by features of their positions alone, as in
    bilinear pooling. Layouts as in ``Attention``; an operand need not have all labels.

    Attributes:
        key: Layout of the operand.
        value: Layout of the operand.
        output: Layout of the result.
        query: Layout of the operand; empty where there is none.
        mask: Layout of the operand m that K is multiplied by; empty where there is none.
        hides: Whether m is the inverse of a boolean operand.
        softmaxed: Whether a softmax over the positions is taken of the keys.
        causal: Whether a query sees keys up to its own position only.
        normalised: Whether the weights are divided by their sum.
        eps: Added to that sum, or its least value.
        clamped: Which of both.
        scale: A number.
        averaged: Whether K is divided by the number of positions, as in Galerkin attention (arXiv 2105.14995, eq. 5).
        sizes: Extents of labels that are fixed.
        memory: As of ``Attention``.
    """

    family: ClassVar[str] = "separable"
    value_map: ClassVar[str] = "value"

    key: str
    value: str
    output: str
    query: str = ""
    mask: str = ""
    hides: bool = False
    softmaxed: bool = False
    causal: bool = False
    normalised: bool = False
    eps: float = 0.0
    clamped: bool = False
    scale: float = 1.0
    averaged: bool = False
    sizes: tuple[tuple[str, int], ...] = ()
    memory: tuple[int, ...] = ()

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Layout of every operand by role."""
        texts = {"query": self.query, "key": self.key, "value": self.value, "mask": self.mask}
        return {role: parse(text) for role, text in texts.items() if text}

    @cached_property
    def labels(self) -> Labels:
        """Labels by what they count."""
        query, key, value = (labels_of(self.layouts.get(role, ())) for role in ("query", "key", "value"))
        output = labels_of(parse(self.output))
        keys = tuple(label for label in key if label in value and label not in output)
        features = tuple(label for label in output if label in value and label not in (*query, *key))
        own = query if self.query else key
        others = (*key, *value) if self.query else value
        queries = tuple(label for label in output if label in own and label not in others)
        batch = tuple(label for label in output if label not in (*queries, *features))
        channels = tuple(label for label in query if label in key and label not in output)
        return Labels(batch, queries, keys, channels, features)

    def describe(self) -> str:
        """``separable(causal, normalised)`` and the layouts."""
        parts = [f"scale={self.scale:.6g}"] if self.scale != 1.0 else []
        parts += [name for name in ("softmaxed", "causal", "normalised", "averaged") if getattr(self, name)]
        parts += [f"{'at least' if self.clamped else 'eps'}={self.eps:.3g}"] if self.eps else []
        parts += ["·¬mask" if self.hides else "·mask"] if self.mask else []
        text = f"{self.family}({', '.join(parts)})" if parts else self.family
        query = f"q[{self.query}] " if self.query else ""
        return f"{text} ({query}k[{self.key}] v[{self.value}] -> [{self.output}])"

    def formula(self) -> list[str]:
        """In the labels of the node."""
        return separable_formula(self)

    def properties(self, domain: Domain) -> frozenset[str]:
        """Linear in the values; separable but for a mask."""
        found = {"linear"}
        if self.causal and self.query and not self.softmaxed:
            found.add("causal")
        elif self.query and not self.mask:
            found.add("separable")
        if self.normalised and not self.eps:
            found.add("normalised")
        return frozenset(found)

    def separable_rank(self, operands: Operands) -> int:
        """Number of channels: the rank that K has at most."""
        sizes = self.extents(operands)
        return math.prod(sizes[label] for label in self.labels.channels)

    def extents(self, operands: Operands) -> dict[str, int]:
        """Extent of every label."""
        return label_sizes(self.layouts, {role: operands[role] for role in self.layouts}, dict(self.sizes))

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """y."""
        return self.apply_matrix(domain, self.kernel_matrix(domain, **operands), **operands)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K / Z, (…, L, S): batch labels, then one axis of query positions and one of key positions."""
        sizes, labels = self.extents(operands), self.labels
        order = (*labels.batch, *labels.queries, *labels.keys)
        factors = [self._split(role, operands, sizes) for role in ("query", "key", "mask") if role in self.layouts]
        present = tuple(label for label in order if any(label in own for _, own in factors))
        weights = contracted(factors, present) * self.scale
        weights = weights.reshape([sizes[label] if label in present else 1 for label in order])
        weights = weights.expand([sizes[label] for label in order])
        lengths = [math.prod(sizes[label] for label in group) for group in (labels.queries, labels.keys)]
        weights = weights.reshape([*(sizes[label] for label in labels.batch), *lengths])
        if self.averaged:
            weights = weights / max(lengths[1], 1)
        if self.causal:
            weights = weights.tril()
        if self.normalised:
            total = weights.sum(-1, keepdim=True)
            weights = weights / (total.clamp_min(self.eps) if self.clamped else total + self.eps)
        return weights

    def _split(self, role: str, operands: Operands, sizes: dict[str, int]) -> tuple[Tensor, tuple[str, ...]]:
        own, tensor = labels_of(self.layouts[role]), operands[role]
        if role == "mask":
            tensor = (~tensor if self.hides else tensor).to(operands["key"].dtype)
        tensor = tensor.reshape([sizes[label] for label in own])
        if role == "key" and self.softmaxed:
            places = [own.index(label) for label in self.labels.keys]
            tensor = tensor - tensor.amax(places, keepdim=True) if tensor.numel() else tensor
            tensor = tensor.exp() / tensor.exp().sum(places, keepdim=True)
        return tensor, own

    def apply_matrix(self, domain: Domain, matrix: Tensor, **operands: Any) -> Tensor:
        """Σ_j K·v in the layout of the output."""
        sizes, labels = self.extents(operands), self.labels
        order = (*labels.batch, *labels.queries, *labels.keys)
        result = (*labels.batch, *labels.queries, *labels.features)
        weights = matrix.reshape([sizes[label] for label in order])
        summed = contracted([(weights, order), self._split("value", operands, sizes)], result)
        return merged(summed, result, parse(self.output), sizes)

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """Small extents by label."""
        found = dict.fromkeys(label for layout in self.layouts.values() for label in labels_of(layout))
        small = dict(zip(found, (2, 3, 5, 4, 7, 6, 8, 2, 2, 2, 2, 2), strict=False))
        if self.causal:
            small[self.labels.keys[0]] = small[self.labels.queries[0]]
        drawn = replace(self, sizes=tuple((label, small[label]) for label, _ in self.sizes))
        return drawn._sample(domain, small)

    def _sample(self, domain: Domain, sizes: dict[str, int]) -> Sample:
        # Positive features: the sum that normalises is then far from 0.
        kinds = dict.fromkeys(("query", "key", "mask"), "positive") if self.normalised else {}
        kinds |= {"mask": "bool"} if self.hides else {}
        draws = {
            role: Draw(tuple(math.prod(sizes[label] for label in axis) for axis in layout), kinds.get(role, "float"))
            for role, layout in self.layouts.items()
        }
        return Sample(Spec(self, domain, "linear attention", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """The cheaper order of both products; bytes of operands and outputs."""
        sizes, labels = self.extents(operands), self.labels
        batch, i, j, c, e = (
            math.prod(sizes[label] for label in group)
            for group in (labels.batch, labels.queries, labels.keys, labels.channels, labels.features)
        )
        pairwise, factored = i * j * (c + e), (i + j) * c * e
        if not self.query:
            flops = 2 * batch * i * j * e
        else:
            flops = 2 * batch * (pairwise if self.mask else min(pairwise, factored))
        moved = [*operands.values(), *outputs]
        return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        plain = cls("b h j c", "b h j e", "b h i e", "b h i c")
        heads = cls("b j (h c)", "b j (h e)", "b i (h e)", "b i (h c)", sizes=(("h", 3),))
        sizes = {"b": 2, "h": 3, "i": 5, "j": 7, "c": 4, "e": 6}
        same = sizes | {"i": 7}
        cases = [
            (plain, sizes),
            (plain, sizes | {"i": 63, "j": 1}),
            (plain, sizes | {"j": 0}),
            (plain, sizes | {"b": 0}),
            (heads, sizes),
            (replace(plain, scale=0.3), sizes),
            (replace(plain, normalised=True, eps=1e-6), sizes),
            (replace(plain, normalised=True, eps=0.5, clamped=True), sizes),
            (replace(plain, causal=True), same),
            (replace(plain, causal=True), sizes | {"i": 300, "j": 300, "b": 1, "h": 1}),
            (replace(heads, causal=True, normalised=True, eps=1e-3), same),
            (replace(plain, averaged=True, scale=0.5), sizes),
            (replace(plain, averaged=True, causal=True), same),
            (replace(plain, mask="h i j"), sizes),
            (replace(plain, softmaxed=True, scale=0.5), sizes),
            (replace(heads, softmaxed=True), sizes),
            (replace(plain, mask="i j", hides=True), sizes),
            (replace(plain, mask="b 1 1 j", normalised=True, eps=1.0), sizes),
            (cls("b j c", "b j e", "b c e"), sizes),
            (cls("b c j", "b e j", "b e c", scale=0.1), sizes),
            (cls("j c", "b j e", "b i e", "i c"), sizes),
        ]
        return [
            replace(kernel, sizes=tuple((label, size[label]) for label, _ in kernel.sizes))._sample(
                Keys(causal=kernel.causal), size
            )
            for kernel, size in cases
        ]
