"""Sums of products as labelled contractions: ``linear``, ``matmul``, ``bmm``, ``einsum`` … read alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch.fx import Node

from ..match import bind, rank
from ..operators import operator_name

__all__ = ["Contraction", "contraction"]

Labels = tuple[str, ...]


@dataclass(frozen=True)
class Contraction:
    """out[output] = Σ Π operand[labels], summed over the labels that ``output`` lacks.

    Attributes:
        operands: The factors.
        labels: Their axes; equal labels are one axis.
        output: Axes of the result.
        addend: Added to the result, broadcast (the bias), or None.
        added: Axes of the addend where they are not the last ones of the result.
    """

    operands: tuple[Node, ...]
    labels: tuple[Labels, ...]
    output: Labels
    addend: Node | None = None
    added: Labels | None = None

    @property
    def summed(self) -> Labels:
        """Labels summed over."""
        return tuple(label for label in dict.fromkeys(sum(self.labels, ())) if label not in self.output)


def contraction(node: Node) -> Contraction | None:
    """The call as a labelled contraction, or None where it is none or its labels cannot be read."""
    name, given = operator_name(node), bind(node)
    if name == "linear":
        return _linear(given["input"], given["weight"], given["bias"])
    if name in ("matmul", "linalg_matmul", "__matmul__", "bmm", "mm", "mv", "dot", "vdot"):
        first, second = list(given.values())[:2]
        return _matmul(first, second)
    if name in ("addmm", "baddbmm", "addmv"):
        self, first, second = list(given.values())[:3]
        return _matmul(first, second, self)
    if name in ("outer", "ger"):
        first, second = list(given.values())[:2]
        return Contraction((first, second), (("m",), ("n",)), ("m", "n"))
    if name == "inner":
        first, second = list(given.values())[:2]
        left, right = _names("a", rank(first) - 1), _names("b", rank(second) - 1)
        return Contraction((first, second), ((*left, "k"), (*right, "k")), left + right)
    if name == "tensordot":
        return _tensordot(given["self"], given["other"], given["dims_self"], given["dims_other"])
    if name == "einsum":
        return _einsum(given["equation"], given["tensors"])
    return None


def _names(letter: str, count: int) -> Labels:
    return tuple(f"{letter}{index}" for index in range(count))


def _linear(source: Node, weight: Node, bias: Node | None) -> Contraction:
    kept = _names("p", rank(source) - 1)
    if rank(weight) == 1:
        return Contraction((source, weight), ((*kept, "k"), ("k",)), kept, bias)
    return Contraction((source, weight), ((*kept, "k"), ("n", "k")), (*kept, "n"), bias)


def _matmul(first: Node, second: Node, addend: Node | None = None) -> Contraction:
    """Rules of ``torch.matmul``: batch axes broadcast from the right, vectors lose their axis."""
    batch = _names("b", max(rank(first), rank(second)))[::-1]
    left = (*_last(batch, rank(first) - 2), "m", "k") if rank(first) > 1 else ("k",)
    right = (*_last(batch, rank(second) - 2), "k", "n") if rank(second) > 1 else ("k",)
    shared = _last(batch, max(rank(first), rank(second)) - 2)
    output = (*shared, *(label for label in ("m", "n") if label in left + right))
    return Contraction((first, second), (left, right), output, addend)


def _last(labels: Labels, count: int) -> Labels:
    return labels[len(labels) - count :] if count > 0 else ()


def _tensordot(first: Node, second: Node, ours: Sequence[int], theirs: Sequence[int]) -> Contraction:
    left, right = list(_names("a", rank(first))), list(_names("b", rank(second)))
    for index, (mine, other) in enumerate(zip(ours, theirs, strict=True)):
        left[mine] = right[other] = f"k{index}"
    output = tuple(label for label in (*left, *right) if not label.startswith("k"))
    return Contraction((first, second), (tuple(left), tuple(right)), output)


def _einsum(equation: str, tensors: Sequence[Node]) -> Contraction | None:
    equation = equation.replace(" ", "")
    inputs, arrow, result = equation.partition("->")
    terms = inputs.split(",")
    if len(terms) != len(tensors):
        return None
    labels = tuple(_term(term, rank(tensor)) for term, tensor in zip(terms, tensors, strict=True))
    if not arrow:  # the classical rule: ellipsis, then labels that occur once, in alphabetical order
        once = sorted(letter for letter in set(inputs) if letter.isalpha() and inputs.count(letter) == 1)
        result = ("..." if "..." in inputs else "") + "".join(once)
    spread = max((sum(label.startswith(".") for label in term) for term in labels), default=0)
    return Contraction(tuple(tensors), labels, _term(result, len(result.replace("...", "")) + spread))


def _term(term: str, axes: int) -> Labels:
    """Labels of one operand; the axes of an ellipsis are numbered from the right."""
    before, dots, after = term.partition("...")
    count = axes - len(before) - len(after) if dots else 0
    return (*before, *(f".{index}" for index in reversed(range(count))), *after)
