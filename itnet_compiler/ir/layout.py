"""Layouts: which labels the axes of a tensor hold, as einops writes them: ``b i (h c)``; ``1`` is an axis of extent 1.

A label is one factor of an index; an axis of several holds them slowest first, as a view merges axes. Equal labels of
two operands are one index. Whoever makes a layout has proven it from the views of a graph, never from equal sizes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Arranger",
    "Layout",
    "contracted",
    "label_sizes",
    "labels_of",
    "merged",
    "ordered",
    "parse",
    "shown",
    "spread",
]

Layout = tuple[tuple[str, ...], ...]


def parse(text: str) -> Layout:
    """``b i (h c)`` → ((b), (i), (h, c))."""
    return tuple(
        () if part == "1" else tuple(part.strip("()").split()) for part in re.findall(r"\([^)]*\)|[^\s()]+", text)
    )


def shown(layout: Iterable[Sequence[str]]) -> str:
    """The inverse of ``parse``."""
    return " ".join("1" if not axis else axis[0] if len(axis) == 1 else f"({' '.join(axis)})" for axis in layout)


def labels_of(layout: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """All labels, slowest first."""
    return tuple(label for axis in layout for label in axis)


def label_sizes(layouts: Mapping[str, Layout], operands: Mapping[str, Any], known: Mapping[str, int]) -> dict[str, int]:
    """Extent of every label, from the shapes of operands (by role) and the ``known`` ones.

    Raises:
        ValueError: where a merged axis leaves more than one label open.
    """
    sizes = dict(known)
    waiting = [
        (axis, operands[role].shape[place]) for role, layout in layouts.items() for place, axis in enumerate(layout)
    ]
    while waiting:
        rest = []
        for axis, extent in waiting:
            unknown = [label for label in axis if label not in sizes]
            if len(unknown) > 1:
                rest.append((axis, extent))
            elif unknown:
                inner = prod(sizes[label] for label in axis if label != unknown[0])
                sizes[unknown[0]] = extent // inner if inner else 0
        if len(rest) == len(waiting):
            raise ValueError(f"the extents of {rest[0][0]} are not known")
        waiting = rest
    return sizes


def contracted(factors: Sequence[tuple[Tensor, Sequence[str]]], result: Sequence[str]) -> Tensor:
    """Σ Π of tensors with one label an axis, over the labels that ``result`` lacks."""
    letters = {
        label: chr(97 + number)
        for number, label in enumerate(dict.fromkeys(sum((tuple(own) for _, own in factors), ())))
    }
    terms = ",".join("".join(letters[label] for label in own) for _, own in factors)
    equation = f"{terms}->{''.join(letters[label] for label in result)}"
    return torch.einsum(equation, *(tensor for tensor, _ in factors))


def merged(tensor: Tensor, order: Sequence[str], target: Layout, sizes: Mapping[str, int]) -> Tensor:
    """A tensor with one label an axis, those of ``order``, in the layout ``target``."""
    moved = tensor.permute([order.index(label) for label in labels_of(target)])
    return moved.reshape([prod(sizes[label] for label in axis) for axis in target])


def spread(
    tensor: Tensor, layout: Layout, target: Layout, sizes: Mapping[str, int], filled: Iterable[int] = ()
) -> Tensor:
    """A tensor of ``layout`` with the axes of ``target``: of extent 1 where it lacks all labels of one, unless that is
    among those to be ``filled``; expanded along the labels that it lacks otherwise.
    """
    own = labels_of(layout)
    order = [label for label in labels_of(target) if label in own]
    tensor = tensor.reshape([sizes[label] for label in own]).permute([own.index(label) for label in order])
    tensor = tensor.reshape([sizes[label] if label in own else 1 for label in labels_of(target)])
    whole = {place for place, axis in enumerate(target) if place in set(filled) or set(axis) & set(own)}
    wide = [sizes[label] if place in whole else 1 for place, axis in enumerate(target) for label in axis]
    return tensor.expand(wide).reshape(
        [prod(sizes[label] for label in axis) if place in whole else 1 for place, axis in enumerate(target)]
    )


class Arranger:
    """Writes the Python code of arrangements: one line an operand, extents read from the operands once.

    Args:
        layouts: Of the operands, by the name that each has in the code.
        known: Extents that are fixed.
    """

    def __init__(self, layouts: Mapping[str, Layout], known: Mapping[str, int]) -> None:
        self._layouts = dict(layouts)
        self._extents = {label: str(size) for label, size in known.items()}
        self.lines: list[str] = []
        self._waiting = [(name, place, axis) for name, layout in layouts.items() for place, axis in enumerate(layout)]

    def extent(self, label: str) -> str:
        """An expression for the extent of ``label``; adds the line that computes it where there is none yet.

        Raises:
            ValueError: where a merged axis leaves more than one label open.
        """
        if label not in self._extents:
            self._find(label)
        return self._extents[label]

    def _find(self, label: str, seen: frozenset[str] = frozenset()) -> None:
        holders = [holder for holder in self._waiting if label in holder[2]]
        for name, place, axis in sorted(holders, key=lambda holder: len(holder[2])):
            others = [other for other in axis if other != label]
            if any(other in seen for other in others):
                continue
            try:
                for other in others:
                    if other not in self._extents:
                        self._find(other, seen | {label})
            except ValueError:
                continue
            inner = " * ".join(self._extents[other] for other in others)
            self.lines.append(f"{label} = {name}.size({place})" + (f" // ({inner})" if inner else ""))
            self._extents[label] = label
            return
        raise ValueError(f"the extent of {label} is not known")

    def arranged(self, name: str, target: Layout, *, layout: Layout | None = None) -> str:
        """The expression of operand ``name`` (or of any expression of ``layout``) with the axes of ``target``."""
        layout = self._layouts[name] if layout is None else layout
        text, present = name, labels_of(layout)
        singles = tuple((label,) for label in present)
        order = [label for label in labels_of(target) if label in present]
        if layout == target:
            return text
        if tuple((label,) for label in order) == tuple(axis for axis in target if axis) == layout and len(layout):
            return f"{text}{_with_ones(target)}"  # only axes of extent 1 are new
        if layout != singles:
            text += f".reshape({self._shape(singles)})"
        if list(present) != order:
            text += f".permute({', '.join(str(present.index(label)) for label in order)})"
        spread = tuple((label,) if label in present else () for label in labels_of(target))
        kept = tuple((label,) for label in order)
        aligned = tuple(axis if set(axis) & set(present) else () for axis in target)
        if kept == aligned:
            return text
        if kept == tuple(axis for axis in aligned if axis):
            return f"{text}{_with_ones(aligned)}"
        partial = [axis for axis in aligned if axis and not set(axis) <= set(present)]
        if partial:
            text += f".reshape({self._shape(spread)})"
            wide = tuple(
                (label,) if label in present or set(axis) & set(present) else () for axis in target for label in axis
            )
            text += f".expand({self._shape(wide)})"
        return f"{text}.reshape({self._shape(aligned)})"

    def _shape(self, layout: Layout) -> str:
        return ", ".join(" * ".join(self.extent(label) for label in axis) or "1" for axis in layout) or "()"


def ordered(text: str, memory: Sequence[int]) -> str:
    """The expression ``text`` with its axes in memory in the order ``memory``, slowest first; any where it is empty."""
    places = range(len(memory))
    if list(memory) == list(places):
        return f"{text}.contiguous()" if memory else text
    there, back = (", ".join(map(str, order)) for order in (memory, [memory.index(place) for place in places]))
    return f"{text}.permute({there}).contiguous().permute({back})"


def _with_ones(target: Layout) -> str:
    if all(target):
        return ""
    return f"[{', '.join(':' if axis else 'None' for axis in target)}]"
