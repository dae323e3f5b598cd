"""Families ``stationary`` and ``dense``: windows that a program takes apart itself, times weights, summed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from .domain import Domain, Window
from .kernel import Draw, Kernel, Operands, Sample, Spec, Work
from .layout import Layout, contracted, label_sizes, labels_of, merged, parse, spread
from .stationary import output_extents, source_indices
from .windows import gather_windows

__all__ = ["WindowAxis", "WindowSum", "WindowSumOwn"]


@dataclass(frozen=True)
class WindowAxis:
    """The labels of one axis that windows are taken along; empty where the extent is the constant 1.

    Attributes:
        source: Position in the source.
        place: Number of the window.
        tap: Place within it.
    """

    source: str
    place: str
    tap: str


@dataclass(frozen=True)
class WindowSum(Kernel):
    """A convolution written as ``unfold`` and a product ("im2col", Chellapilla et al. 2006), in any layout:

        y[…, p, …] = Σ w[…, k, …]·x[…, s·p − low + d·k, …] (+ bias),  over taps k and labels that y lacks

    Operands: ``input``, ``weight`` and optionally ``bias``, which is added to the result. Layouts as in ``Attention``.

    Attributes:
        input: Layout of the operand.
        weight: Layout of the operand; it has all taps.
        output: Layout of the result; it has all places.
        axes: One entry an axis of the window, as in the domain.
        bias: Layout of the operand, empty where there is none.
        sizes: Extents of labels that are fixed.
        memory: As of ``Attention``.
    """

    family: ClassVar[str] = "stationary"
    value_map: ClassVar[str] = "input"

    input: str
    weight: str
    output: str
    axes: tuple[WindowAxis, ...]
    bias: str = ""
    sizes: tuple[tuple[str, int], ...] = ()
    memory: tuple[int, ...] = ()

    @cached_property
    def layouts(self) -> dict[str, Layout]:
        """Layout of every operand by role."""
        texts = {"input": self.input, "weight": self.weight, "bias": self.bias}
        return {role: parse(text) for role, text in texts.items() if text}

    @property
    def lead(self) -> tuple[str, ...]:
        """Labels of the input beside the positions."""
        sources = {axis.source for axis in self.axes}
        return tuple(label for label in labels_of(self.layouts["input"]) if label not in sources)

    def along(self, what: str) -> Layout:
        """One axis for each of the window: its ``source``, ``place`` or ``tap``; 1 where that has no label."""
        labels = (getattr(axis, what) for axis in self.axes)
        return tuple((label,) if label else () for label in labels)

    def describe(self) -> str:
        """The layouts."""
        bias = f" + b[{self.bias}]" if self.bias else ""
        return f"{self.family}(w[{self.weight}] x[{self.input}]{bias} -> [{self.output}])"

    def properties(self, domain: Domain) -> frozenset[str]:
        """Linear but for a bias; causal where no tap lies behind its place."""
        assert isinstance(domain, Window)
        reach, low = domain.dilation[0] * (domain.size[0] - 1), domain.padding[0][0]
        facts = {
            "linear": True,
            "stationary": self.family == "stationary" and not self._moves("bias"),
            "causal": domain.rank == 1 and domain.stride == (1,) and reach <= low,
        }
        return frozenset(name for name, holds in facts.items() if holds)

    def _moves(self, role: str) -> bool:
        """Whether an operand has a label of the places."""
        return bool({axis.place for axis in self.axes} & set(labels_of(self.layouts.get(role, ()))))

    def extents(self, domain: Window, operands: Operands) -> dict[str, int]:
        """Extent of every label."""
        known = dict(self.sizes) | {axis.tap: size for axis, size in zip(self.axes, domain.size, strict=True)}
        sizes = label_sizes(self.layouts, {role: operands[role] for role in self.layouts}, known)
        sources = [sizes.get(axis.source, 1) for axis in self.axes]
        return sizes | {
            axis.place: extent for axis, extent in zip(self.axes, output_extents(domain, sources), strict=True)
        }

    def evaluate(self, domain: Domain, **operands: Any) -> Tensor:
        """Every window gathered, then the sum of products."""
        assert isinstance(domain, Window)
        sizes, target = self.extents(domain, operands), parse(self.output)
        order = labels_of(target)
        windows = self._windows(domain, operands["input"], sizes)
        own = labels_of(self.layouts["weight"])
        weight = operands["weight"].reshape([sizes[label] for label in own])
        y = merged(contracted([windows, (weight, own)], order), order, target, sizes)
        return y if not self.bias else y + spread(operands["bias"], self.layouts["bias"], target, sizes)

    def _windows(self, domain: Window, source: Tensor, sizes: dict[str, int]) -> tuple[Tensor, tuple[str, ...]]:
        """Windows with one label an axis: lead, places, taps."""
        own = labels_of(self.layouts["input"])
        spatial = [axis.source for axis in self.axes]
        x = source.reshape([sizes[label] for label in own])
        x = x.permute([own.index(label) for label in (*self.lead, *(one for one in spatial if one))])
        x = x.reshape(
            [sizes[label] for label in self.lead] + [sizes.get(label, 1) if label else 1 for label in spatial]
        )
        extents = x.shape[len(self.lead) :]
        found = gather_windows(x, source_indices(domain, extents, x.device), 0.0).unflatten(-1, domain.size)
        # What has no label has extent 1, and is summed over.
        places = [axis.place or f"place{number}" for number, axis in enumerate(self.axes)]
        taps = [axis.tap or f"tap{number}" for number, axis in enumerate(self.axes)]
        return found, (*self.lead, *places, *taps)

    def kernel_matrix(self, domain: Domain, **operands: Any) -> Tensor:
        """K on flattened elements: [elements of y, elements of x]."""
        source = operands["input"]
        units = torch.eye(source.numel(), dtype=source.dtype, device=source.device)
        without = replace(self, bias="")
        kept = {role: value for role, value in operands.items() if role != "bias"}
        columns = [without.evaluate(domain, **kept | {"input": unit.reshape(source.shape)}).flatten() for unit in units]
        if not columns:
            return source.new_zeros(without.evaluate(domain, **kept | {"input": source}).numel(), 0)
        return torch.stack(columns, 1)

    def position_axes(self) -> list[tuple[int, int]] | None:
        """Places of the axes of positions in the input and in the output; None where views have merged them."""
        layouts = self.layouts["input"], parse(self.output)
        pairs = [((axis.source,), (axis.place,)) for axis in self.axes]
        if any(source not in layouts[0] or place not in layouts[1] for source, place in pairs):
            return None
        return [(layouts[0].index(source), layouts[1].index(place)) for source, place in pairs]

    def miniature(self, domain: Domain, roles: tuple[str, ...]) -> Sample:
        """Small extents by label; the window is the same."""
        assert isinstance(domain, Window)
        found = dict.fromkeys(label for layout in self.layouts.values() for label in labels_of(layout))
        spatial = {label for axis in self.axes for label in (axis.source, axis.place, axis.tap)}
        free = [label for label in found if label not in spatial]
        small = dict(zip(free, (2, 3, 5, 4, 7, 6, 2, 2, 2, 2, 2, 2), strict=False))
        used = [math.prod(small.get(label, 1) for label in axis) for axis in self.layouts["input"]]
        for number, axis in enumerate(self.axes):
            reach = domain.dilation[number] * (domain.size[number] - 1) + 1 - sum(domain.padding[number])
            if axis.source:
                extent = max(reach, 1) + (domain.stride[number] * (1 + number) if axis.place else 0)
                while axis.place and extent in used:
                    extent += 1
                small[axis.source] = extent
                used.append(extent)
        drawn = replace(self, sizes=tuple((label, small[label]) for label, _ in self.sizes if label in small))
        return drawn._sample(domain, small)

    def _sample(self, domain: Window, sizes: dict[str, int]) -> Sample:
        sources = [sizes.get(axis.source, 1) for axis in self.axes]
        places = zip(self.axes, output_extents(domain, sources), strict=True)
        taps = zip(self.axes, domain.size, strict=True)
        sizes = sizes | {axis.place: extent for axis, extent in places} | {axis.tap: size for axis, size in taps}
        fixed = dict(self.sizes) | {axis.place: sizes[axis.place] for axis in self.axes if axis.place}
        merged_ = {label for layout in self.layouts.values() for axis in layout if len(axis) > 1 for label in axis}
        known = tuple(sorted((label, sizes[label]) for label in fixed if label in merged_))
        draws = {
            role: Draw(tuple(math.prod(sizes[label] for label in axis) for axis in layout))
            for role, layout in self.layouts.items()
        }
        return Sample(Spec(replace(self, sizes=known), domain, "convolution by windows", tuple(draws)), draws)

    def work(self, domain: Domain, operands: Operands, outputs: tuple[Tensor, ...]) -> Work:
        """Every tap of every output once."""
        assert isinstance(domain, Window)
        sizes = self.extents(domain, operands)
        output = labels_of(parse(self.output))
        summed = {*labels_of(self.layouts["weight"]), *self.lead} - set(output)
        flops = 2 * outputs[0].numel() * math.prod(sizes[label] for label in summed)
        moved = [*operands.values(), *outputs]
        return Work(flops, sum(int(tensor.numel()) * tensor.element_size() for tensor in moved))

    @classmethod
    def samples(cls) -> list[Sample]:
        """Layouts of ``unfold`` with weights shared by all places."""
        flat = (WindowAxis("y", "p", "i"), WindowAxis("x", "q", "j"))
        line = (WindowAxis("x", "p", "k"),)
        square = Window((3, 2), (1, 2), ((1, 1), (0, 0)), (1, 1))
        row = Window((3,), (1,), ((2, 0),), (1,))
        whole = cls("c y x", "o (c i j)", "o", (WindowAxis("y", "", "i"), WindowAxis("x", "", "j")), sizes=(("c", 3),))
        sizes = {"b": 2, "c": 3, "o": 5, "g": 2, "y": 6, "x": 7}
        cases = [
            (cls("b c y x", "o (c i j)", "b o (p q)", flat, sizes=(("c", 3),)), square, sizes),
            (cls("b c y x", "(c i j) o", "b (p q) o", flat, "o", (("c", 3),)), square, sizes),
            (cls("b (g c) y x", "g o (c i j)", "b (g o) p q", flat, "(g o)", (("c", 3), ("g", 2))), square, sizes),
            (cls("b c x", "c k", "b c p", line), row, sizes),
            (cls("b x c", "k c o", "b p o", line, "p o"), row, sizes),
            (cls("b x", "k", "b p", line), Window((4,), (3,), ((0, 0),), (2,)), sizes | {"x": 20}),
            (cls("b c x", "b o c k", "b o p", line), row, sizes),
            (cls("b c x", "c o k", "b o p", line), row, sizes | {"b": 0}),
            (cls("b c x", "c o k", "b o p", line), Window((7,), (1,), ((3, 3),), (1,)), sizes | {"x": 63}),
            (cls("b c x", "c o", "b o p", (WindowAxis("x", "p", ""),)), Window((1,), (2,), ((0, 0),), (1,)), sizes),
            (whole, Window((6, 7), (1, 1), ((0, 0), (0, 0)), (1, 1)), sizes),
        ]
        return [kernel._sample(domain, size) for kernel, domain, size in cases]


@dataclass(frozen=True)
class WindowSumOwn(WindowSum):
    """The same where every place has weights of its own: the weight has a label of the places.

    They may be parameters ("locally connected" layers) or computed from the features, as by involution
    (arXiv 2103.06255, eq. 4) and dynamic convolution (1901.10430, eq. 4).
    """

    family: ClassVar[str] = "dense"

    @classmethod
    def samples(cls) -> list[Sample]:
        """Layouts of involution, dynamic convolution and locally connected layers."""
        flat = (WindowAxis("y", "p", "i"), WindowAxis("x", "q", "j"))
        line = (WindowAxis("x", "p", "k"),)
        square = Window((3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
        row = Window((3,), (1,), ((2, 0),), (1,))
        sizes = {"b": 2, "c": 3, "o": 5, "g": 2, "y": 5, "x": 7}
        cases = [
            (cls("b (g c) y x", "b g (i j) p q", "b (g c) p q", flat, sizes=(("c", 3), ("g", 2))), square, sizes),
            (cls("b x (g c)", "b p g k", "b p (g c)", line, sizes=(("c", 3), ("g", 2))), row, sizes),
            (cls("b c x", "p o c k", "b o p", line, "o p"), row, sizes),
            (cls("b c x", "p o c k", "b o p", line), row, sizes | {"b": 0}),
        ]
        return [kernel._sample(domain, size) for kernel, domain, size in cases]
