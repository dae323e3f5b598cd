"""Softmax attention to several sets of sources at once: a window and global tokens, or blocks that are chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Keys
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .layout import Layout, contracted, label_sizes, labels_of, merged, parse
from .softmax import normalised
from .steps import Labels

__all__ = ["JoinedAttention"]


@dataclass(frozen=True)
class JoinedAttention(Kernel):
    """One softmax over P sets of sources in a row, whose values lie in tensors of their own:

        w(b, i, ·) = softmax of s[b, i, ·], over j = 1 … Σ_p S_p
        y[b, i, e] = Σ_p Σ_(j of set p) w(b, i, j)·v_p[b, j, e]

    as attention to a window and to global positions has it ("Big Bird", arXiv 2007.14062; "Investigating Efficiently
    Extending Transformers for Long Input Summarization", arXiv 2208.04347). Operands are ``scores`` and a tensor of
    values for each set, ``value``, ``value2`` …, in the order of the sets. Values need not have all labels of the
    scores: global ones are the same for every block of queries.

    Attributes:
        scores: Layout of the scores (see ``ir.layout``), with the label ``j`` of all sources.
        values: Layout of each set's values, with the label ``j1``, ``j2`` … of its sources.
        output: Layout of the result.
        sizes: Extents of labels that are fixed.
        dropout: Probability with which a weight is zeroed.
        wide: Whether a softmax of half-precision scores is taken in float32.
        returns_weights: Whether the weights, laid out as the scores, are a second output.
        memory: As in ``Attention``.
    """

    family: ClassVar[str] = "softmax"
    value_map: ClassVar[str] = "value"

    scores: str
    values: tuple[str, ...]
    output: str
    sizes: tuple[tuple[str, int], ...] = ()
    dropout: float = 0.0
    wide: bool = False
    returns_weights: bool = False
    memory: tuple[int, ...] = ()

    @cached_property
    def roles(self) -> tuple[str, ...]:
        """Operands that hold values, in the order of the sets."""
        return tuple("value" if place == 0 else f"value{place + 1}" for place in range(len(self.values)))

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Layout of every operand by role."""
        return {"scores": parse(self.scores)} | dict(zip(self.roles, map(parse, self.values), strict=True))

    @cached_property
    def sets(self) -> tuple[str, ...]:
        """The label of the sources of each set."""
        return tuple(f"j{place + 1}" for place in range(len(self.values)))

    @cached_property
    def labels(self) -> Labels:
        """Labels by what they count; the sources of each set have one of their own."""
        scores, output = labels_of(self.layouts["scores"]), labels_of(parse(self.output))
        held = {label for role in self.roles for label in labels_of(self.layouts[role])}
        batch = tuple(label for label in scores if label in held)
        queries = tuple(label for label in scores if label not in (*batch, "j"))
        features = tuple(label for label in output if label not in scores)
        return Labels(batch, queries, self.sets, (), features)

    def describe(self) -> str:
        """``softmax(sets=4, dropout=0.1)`` and the layouts."""
        parts = [f"sets={len(self.values)}"]
        parts += [f"dropout={self.dropout:.6g}"] if self.dropout else []
        parts += ["returns_weights"] if self.returns_weights else []
        values = " ".join(f"v[{layout}]" for layout in self.values)
        return f"{self.family}({', '.join(parts)}) (s[{self.scores}] {values} -> [{self.output}])"

    def properties(self, domain: Domain) -> frozenset[str]:
        """None: it is linear in all values together, not in those of one set."""
        return frozenset()

    def evaluate(self, domain: Domain, **operands: Any) -> Any:
        """y, or (y, w)."""
        layouts = self.layouts
        sizes = label_sizes(layouts, {role: operands[role] for role in layouts}, dict(self.sizes))
        scores = operands["scores"]
        place = layouts["scores"].index(("j",))
        weights = normalised(scores.movedim(place, -1), zero=False).movedim(-1, place)
        if self.dropout:
            weights = torch.dropout(weights, self.dropout, True)
        order = labels_of(parse(self.output))
        parts = []
        for part, role, label in zip(
            weights.split([sizes[label] for label in self.sets], place), self.roles, self.sets, strict=True
        ):
            own = labels_of(tuple((label,) if axis == ("j",) else axis for axis in layouts["scores"]))
            held = labels_of(layouts[role])
            factors = (
                (part.reshape([sizes[one] for one in own]), own),
                (self._split(operands[role], held, sizes), held),
            )
            parts.append(contracted(factors, order))
        result = merged(sum(parts[1:], parts[0]), order, parse(self.output), sizes)
        return (result, weights) if self.returns_weights else result

    @staticmethod
    def _split(tensor: Tensor, labels: tuple[str, ...], sizes: dict[str, int]) -> Tensor:
        return tensor.reshape([sizes[label] for label in labels])

    def formula(self) -> list[str]:
        """In the labels of the node."""
        total = " + ".join(
            f"Σ_{label} w·v{place + 1}[{', '.join(labels_of(parse(layout)))}]"
            for place, (label, layout) in enumerate(zip(self.sets, self.values, strict=True))
        )
        lines = [f"w[{', '.join(labels_of(parse(self.scores)))}] = exp(s) / Σ_j exp(s), j over {' '.join(self.sets)}"]
        lines += [f"w ← dropout(w, {self.dropout:.6g})"] if self.dropout else []
        return [*lines, f"y[{', '.join(labels_of(parse(self.output)))}] = {total}"]

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """Small extents by label; no dropout."""
        found = dict.fromkeys(label for layout in self.layouts.values() for label in labels_of(layout) if label != "j")
        small = dict(zip(found, (2, 3, 5, 4, 7, 6, 8, 2, 3, 2, 2, 2, 2, 2), strict=False))
        kernel = replace(self, sizes=tuple((label, small[label]) for label, _ in self.sizes), dropout=0.0)
        return kernel.sample(domain, small)

    def sample(self, domain: Domain, sizes: dict[str, int]) -> Sample:
        """Operands of these extents."""
        sizes = sizes | {"j": sum(sizes[label] for label in self.sets)}
        draws = {
            role: Draw(tuple(math.prod(sizes[label] for label in axis) for axis in layout))
            for role, layout in self.layouts.items()
        }
        return Sample(Spec(self, domain, "attention", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """2·V flops for each pair of positions and 5 for its softmax. Bytes of operands and outputs."""
        sizes = label_sizes(self.layouts, {role: operands[role] for role in self.layouts}, dict(self.sizes))
        width = math.prod(sizes[label] for label in self.labels.features)
        moved = [*operands.values(), *outputs]
        flops = int(operands["scores"].numel()) * (2 * width + 5)
        return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        blocks = cls("b h l i j", ("b h j1 e", "b h l j2 e"), "b h l i e")
        merged_heads = cls("(b h) j i", ("b j1 h e", "b h e j2", "b h j3 e"), "b i (h e)", sizes=(("h", 3),))
        sizes = {"b": 2, "h": 3, "l": 5, "i": 4, "e": 6, "j1": 7, "j2": 3, "j3": 1}
        return [
            blocks.sample(Keys(), sizes),
            replace(blocks, wide=True, returns_weights=True).sample(Keys(), sizes | {"j1": 63, "i": 1}),
            replace(blocks, memory=(0, 2, 1, 3, 4)).sample(Keys(), sizes | {"j2": 0}),
            merged_heads.sample(Keys(), sizes),
            replace(merged_heads, returns_weights=True).sample(Keys(), sizes | {"b": 0}),
        ]
