"""Repetition in a graph: stretches of consecutive nodes whose operators recur with a fixed period.

An unrolled loop is a run of nodes in program order, so it shows as a periodic stretch of *tokens*, each the hash of
what a node is apart from its operands within the loop and its numbers. What is found here is a guess that
``unrolled`` has to prove.
"""

from __future__ import annotations

import dataclasses
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch.fx import Node

from ...ir.mode import mode_of
from ..custom import CustomCall
from ..operators import operator_name

__all__ = ["LEAST_STEPS", "Stretch", "stretches", "tokens"]

_PIECES = {"unbind", "split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk"}
# A loop of fewer steps than this is left unrolled.
LEAST_STEPS = 4
# Periods that are tried, those first that explain the most nodes.
_MOST_PERIODS = 8


@dataclass(frozen=True)
class Stretch:
    """Nodes ``start`` … ``stop − 1`` of a sequence, of which each has the token of the one ``period`` places on."""

    start: int
    stop: int
    period: int

    @property
    def steps(self) -> int:
        """Whole periods in it."""
        return (self.stop - self.start) // self.period


def tokens(nodes: Sequence[Node]) -> list[int]:
    """What each node is, as a number: operator, module, mode, structure of the arguments; equal for equal nodes."""
    known: dict[Any, int] = {}
    return [known.setdefault(_token(node), len(known)) for node in nodes]


def _token(node: Node) -> Any:
    if node.target is operator.getitem and isinstance(node.args[0], Node):
        source = node.args[0]
        # One of several results: which one tells them apart, unless each step takes another piece.
        if operator_name(source) not in _PIECES or len(source.users) > 1:
            return "getitem", node.args[1]
    kwargs = tuple((name, _shape_of(value)) for name, value in node.kwargs.items())
    own = isinstance(node.target, CustomCall)  # two of them may have one name
    return node.op, node.target if own else str(node.target), _shape_of(node.args), kwargs, mode_of(node)


def _shape_of(value: Any) -> Any:
    """An argument without what may differ from step to step: which node, which number."""
    if isinstance(value, Node):
        return value if value.op == "get_attr" else "node"
    if isinstance(value, (list, tuple)):
        return tuple(_shape_of(item) for item in value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return type(value)
    if isinstance(value, (torch.dtype, torch.device, torch.memory_format, torch.layout)):
        return str(value)
    return value if isinstance(value, (str, bool, type(None))) else type(value)


def stretches(sequence: Sequence[int]) -> Iterator[Stretch]:
    """Periodic stretches of at least four periods, the most promising first; they may overlap."""
    values = numpy.asarray(sequence)
    found: list[Stretch] = []
    for period in _candidate_periods(values):
        found += _of_period(values, period)
    longest = {stretch: stretch.stop - stretch.start for stretch in found}
    # A multiple of a period explains as much, save for a remainder: the shorter period comes first.
    best = sorted(found, key=lambda s: (-(longest[s] // max(1, len(values) // 50)), s.period, s.start))
    yield from best
    # Steps of two equal halves that take different things.
    for times in (2, 3, 4):
        wide = (dataclasses.replace(stretch, period=stretch.period * times) for stretch in best)
        yield from (stretch for stretch in wide if stretch.steps >= LEAST_STEPS and stretch not in longest)


def _candidate_periods(values: numpy.ndarray) -> list[int]:
    """Distances at which groups of neighbouring tokens recur, by how many nodes that holds for."""
    weights: Counter[int] = Counter()
    ranks = values
    width = 1
    while width <= max(1, len(values) // LEAST_STEPS):
        order = numpy.argsort(ranks, kind="stable")
        same = ranks[order][1:] == ranks[order][:-1]
        gaps, counts = numpy.unique((order[1:] - order[:-1])[same], return_counts=True)
        for gap, count in zip(gaps.tolist(), counts.tolist(), strict=True):
            if count >= LEAST_STEPS - 1:
                weights[gap] = max(weights[gap], count)
        # Groups twice as wide: pairs of ranks, numbered anew.
        pairs = numpy.stack([ranks[:-width], ranks[width:]], 1) if len(ranks) > width else ranks[:0].reshape(0, 2)
        if not len(pairs) or not same.any():
            break
        ranks = numpy.unique(pairs, axis=0, return_inverse=True)[1].reshape(-1)
        width *= 2
    return [gap for gap, _ in weights.most_common(_MOST_PERIODS)]


def _of_period(values: numpy.ndarray, period: int) -> list[Stretch]:
    if period * LEAST_STEPS > len(values):
        return []
    equal = numpy.concatenate([[False], values[:-period] == values[period:], [False]])
    edges = numpy.flatnonzero(equal[1:] != equal[:-1]).reshape(-1, 2).tolist()
    found = [Stretch(start, stop + period, period) for start, stop in edges]
    return [stretch for stretch in found if stretch.steps >= LEAST_STEPS]
