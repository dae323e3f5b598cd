"""What is done to the scores and the weights of an attention, step by step, and what their labels count."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = ["LOW", "Factor", "Labels", "Order", "Step", "apply_step", "padded", "renamed", "sorted_labels"]

# A number up to this in place of a score, or added to one, hides the position.
LOW = -9999.0

Order = tuple[str, ...]

_FUNCTIONS = {"tanh": torch.tanh, "nan_to_num": torch.nan_to_num}


@dataclass(frozen=True)
class Factor:
    """A number that something is multiplied by (``*``) or divided by (``/``): ``query``, ``key`` or ``scores``."""

    of: str
    sign: str
    number: float


@dataclass(frozen=True)
class Step:
    """One elementwise map of the scores or the weights s(…, i, j).

    Attributes:
        kind: ``times`` (s·a), ``over`` (s/a), ``plus`` (s + a), ``minus`` (s − a), ``fill`` (number where the operand
            is true), ``keep`` (number where it is false), ``causal`` (−∞ where the second label of ``layout`` is beyond
            the first), ``mix`` (Σ_old operand[new, old]·s, a sum over heads), ``normalise`` (s / (Σ_j s + number)),
            ``tanh``, ``nan_to_num`` or ``dropout`` (with probability ``number``).
        number: a, where it is no operand; what is filled in.
        role: The operand, where there is one.
        layout: Of that operand.
        pattern: What the operand lets through, where that is proven: ``padding``, ``window of 2 before …``
        hides: Whether an operand that is added may hold −∞, or numbers so low that they hide a position.
        old: Of ``mix``: the label that is summed over.
        new: Of ``mix``: the label that takes its place.
        start: By axis of an operand that is added: the places before it, where nothing is added; empty where there are
            none.
        written: Of a number: the factors that the source has in its place, for code that rounds as the source does.
    """

    kind: str
    number: float | None = None
    role: str = ""
    layout: str = ""
    pattern: str = ""
    hides: bool = False
    old: str = ""
    new: str = ""
    start: tuple[int, ...] = ()
    written: tuple[Factor, ...] = field(default=(), compare=False)

    @classmethod
    def by(cls, number: float, sign: str = "*", of: str = "scores") -> Step:
        """``times`` a number or its reciprocal, which is what the query or the key was multiplied by, or the scores."""
        return cls("times", number if sign == "*" else 1.0 / number, written=(Factor(of, sign, number),))

    def __str__(self) -> str:
        of = self.role or (f"{self.number:.6g}" if self.number is not None else "")
        texts = {"times": f"·{of}", "over": f"/{of}", "plus": f"+{of}", "minus": f"-{of}", "dropout": f"dropout={of}"}
        if self.kind in ("fill", "keep"):
            texts[self.kind] = f"{self.number:.3g} {'where' if self.kind == 'fill' else 'unless'} {self.role}"
        if self.kind == "mix":
            texts["mix"] = f"{self.old} mixed to {self.new} by {self.role}"
        if self.kind == "normalise" and self.number:
            return f"normalise(eps={of})"
        if self.start:
            return f"{texts[self.kind]} from {list(self.start)} on"
        if self.pattern:
            return f"{texts[self.kind]}: {self.pattern}"
        return texts.get(self.kind, self.kind)


@dataclass(frozen=True)
class Labels:
    """The labels of an attention by what they count.

    Attributes:
        batch: Samples and heads: those of the weights that keys or values have too, or that are mixed.
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


def renamed(labels: Iterable[str], steps: Sequence[Step], *, back: bool = False) -> Order:
    """Labels behind ``steps``, or with ``back`` before them, where these mix heads."""
    found = tuple(labels)
    for step in reversed(steps) if back else steps:
        if step.kind == "mix":
            one, other = (step.new, step.old) if back else (step.old, step.new)
            found = tuple(other if label == one else label for label in found)
    return found


def sorted_labels(labels: Mapping[str, Order], steps: Sequence[Step], after: Sequence[Step]) -> Labels:
    """What the labels count, given those of ``query``, ``key``, ``value``, ``output`` and ``weights``.

    Those of the weights are the ones that they have where the softmax is taken.
    """
    query, key, value, output, weights = (labels[role] for role in ("query", "key", "value", "output", "weights"))
    mixed = {label for step in (*steps, *after) if step.kind == "mix" for label in (step.old, step.new)}
    last = dict(zip(weights, renamed(weights, after), strict=True))
    keys = tuple(label for label in weights if last[label] not in output)
    held = {*key, *value, *mixed}
    queries = tuple(label for label in weights if last[label] in output and label not in held)
    batch = tuple(label for label in weights if label not in (*keys, *queries))
    first = renamed(batch, steps, back=True)
    channels = tuple(label for label in query if label in key and label not in (*first, *keys))
    features = tuple(label for label in output if label in value and label not in last.values())
    return Labels(batch, queries, keys, channels, features)


def padded(operand: Tensor, start: Sequence[int]) -> Tensor:
    """An operand with zeros for the places before it."""
    return torch.nn.functional.pad(operand, [size for low in reversed(start) for size in (low, 0)])


def apply_step(step: Step, scores: Tensor, operand: Tensor | None) -> Tensor:
    """An elementwise step, or one along the last axis, with its operand, if any, broadcast to the scores."""
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
    if step.kind == "normalise":
        return scores / (scores.sum(-1, keepdim=True) + (step.number or 0.0))
    if step.kind == "dropout":
        return torch.dropout(scores, float(step.number or 0.0), True)
    return _FUNCTIONS[step.kind](scores)
