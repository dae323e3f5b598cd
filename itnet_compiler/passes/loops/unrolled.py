"""Proof that a periodic stretch of nodes is an unrolled loop: step t is aligned with a middle step, operand by operand.

Every operand of every node must be the same place in its own step, a place one or more steps back (a carried value), a
node outside that all steps share, a node outside for each step, or a number that is the same or changes evenly.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from ...ir.body import Progression
from .periods import LEAST_STEPS, Stretch

__all__ = ["Carry", "Each", "External", "Local", "NotALoop", "Unrolled", "align", "evenly", "key_of", "type_key"]


class NotALoop(Exception):
    """Why a periodic stretch is no loop that can be re-rolled.

    Attributes:
        reason: One sentence.
        node: The graph node at fault.
    """

    def __init__(self, reason: str, node: Node | None = None) -> None:
        super().__init__(reason)
        self.reason, self.node = reason, node


@dataclass(frozen=True)
class Local:
    """Place ``place`` of the same step."""

    place: int


@dataclass(frozen=True)
class Carry:
    """Place ``place`` of the step ``lag`` steps back; ``initial`` stands in for it in the first ``lag`` steps."""

    place: int
    lag: int
    initial: tuple[Any, ...]


@dataclass(frozen=True)
class External:
    """A node before the loop that all steps share."""

    node: Node


@dataclass(frozen=True)
class Each:
    """A node before the loop for each step, in the order of the steps."""

    nodes: tuple[Node, ...]


@dataclass
class Unrolled:
    """An unrolled loop.

    Attributes:
        rows: Nodes of every step by place; None in the last ones for what nothing needed and was dropped.
        args: Arguments of every place: ``Local``, ``Carry``, ``External``, ``Each``, ``Progression``, plain values and
            tuples of these.
        kwargs: Keyword arguments likewise, as pairs.
    """

    rows: list[list[Node | None]]
    args: list[tuple[Any, ...]] = field(default_factory=list)
    kwargs: list[tuple[tuple[str, Any], ...]] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.rows)

    @property
    def nodes(self) -> list[Node]:
        """Every node of the loop, in order."""
        return [node for row in self.rows for node in row if node is not None]

    def target(self, place: int) -> Any:
        """The operator at a place."""
        return self.rows[0][place].target


def align(nodes: Sequence[Node], tokens: Sequence[int], stretch: Stretch) -> Unrolled:
    """The loop in ``nodes[stretch.start : stretch.stop]``. Raises ``NotALoop``."""
    failure: NotALoop | None = None
    best: Unrolled | None = None
    for phase in _phases(nodes, stretch):
        try:
            found = _Aligner(nodes, tokens, stretch, phase).align()
        except NotALoop as error:
            failure = failure or error
            continue
        # Whole steps, and all of them: a loop that is cut elsewhere leaves parts of the first and the last one over.
        if best is None or len(found.nodes) > len(best.nodes):
            best = found
    if best is None:
        assert failure is not None
        raise failure
    return best


# Places at which a step may begin, that are tried.
_MOST_PHASES = 2


def _phases(nodes: Sequence[Node], stretch: Stretch) -> list[int]:
    """Where in a period a step is taken to begin: where fewest values are carried, those that are kept preferably."""
    period, middle = stretch.period, stretch.start + stretch.period * (stretch.steps // 2)
    places = {nodes[i]: i for i in range(max(stretch.start, middle - 2 * period), stretch.stop)}
    crossing, kept = [0] * (period + 1), [0] * (period + 1)
    for index in range(max(stretch.start, middle - period), middle + period):
        node = nodes[index]
        uses = [places.get(user) for user in node.users]
        last = max((use for use in uses if use is not None), default=index)
        # The node is carried over every boundary between itself and its last use.
        low, high = max(index + 1 - middle, 0), min(last - middle, period - 1)
        weight = 1 if isinstance(node.meta.get("val"), torch.Tensor) else 100
        if low <= high:
            crossing[low] += weight
            crossing[high + 1] -= weight
            kept[low] += None in uses
            kept[high + 1] -= None in uses
    order = []
    width = outside = 0
    for phase in range(period):
        width, outside = width + crossing[phase], outside + kept[phase]
        order.append((width, -outside, phase))
    return list(dict.fromkeys([*(phase for _, _, phase in sorted(order)[:_MOST_PHASES]), 0]))


class _Aligner:
    def __init__(self, nodes: Sequence[Node], tokens: Sequence[int], stretch: Stretch, phase: int) -> None:
        self.nodes, self.tokens, self.period = nodes, tokens, stretch.period
        self.start = stretch.start + phase
        self.count = (stretch.stop - self.start) // self.period
        if self.count < LEAST_STEPS:
            raise NotALoop(f"fewer than {LEAST_STEPS} steps", nodes[self.start])
        self.index = {nodes[i]: i - self.start for i in range(self.start, self.start + self.count * self.period)}
        self.middle = self.count // 2
        # The oldest step of the final range, as far as carried values demand it.
        self.first, self.last = 0, self.count - 1

    def align(self) -> Unrolled:
        """Find the widest range of steps around the middle one that are the same, then say what each operand is."""
        for step in range(self.middle + 1, self.count):
            if (problem := self._differs(step)) is not None:
                self.last = step - 1
                break
        for step in range(self.middle, -1, -1):
            problem = self._differs(step)
            if problem is not None:
                self.first = step + 1
                break
            if step <= self.first:
                break
        if self.last - self.first + 1 < LEAST_STEPS:
            raise NotALoop(problem or "the steps are not the same", self.nodes[self.start])
        rows: list[list[Node | None]] = [
            [self._at(step, place) for place in range(self.period)] for step in range(self.first, self.last + 1)
        ]
        found = Unrolled(rows)
        self._add_last_steps(found)
        for place in range(self.period):
            present = [row[place] for row in found.rows if row[place] is not None]
            args = [tuple(node.args) for node in present]
            found.args.append(self._merged(args, found, place))
            names = list(present[0].kwargs)
            kwargs = [tuple(node.kwargs[name] for name in names) for node in present]
            found.kwargs.append(tuple(zip(names, self._merged(kwargs, found, place), strict=True)))
        return found

    def _at(self, step: int, place: int) -> Node:
        return self.nodes[self.start + step * self.period + place]

    def _located(self, node: Any) -> tuple[int, int] | None:
        index = self.index.get(node)
        return None if index is None else divmod(index, self.period)

    # ---- which steps are the same

    def _differs(self, step: int) -> str | None:
        """Why ``step`` is not the same as the middle one; lowers nothing but ``first``."""
        for place in range(self.period):
            node, model = self._at(step, place), self._at(self.middle, place)
            if type_key(node) != type_key(model):
                return f"{node.name} has another type or size than {model.name}: it changes from step to step"
            for mine, theirs in zip(leaves_of(node), leaves_of(model), strict=True):
                if (problem := self._operand_differs(mine, theirs, step, node)) is not None:
                    return problem
        return None

    def _operand_differs(self, mine: Any, theirs: Any, step: int, node: Node) -> str | None:
        if not isinstance(theirs, Node):
            return f"{node.name} takes a node instead of a number" if isinstance(mine, Node) else None
        here, there = self._located(mine), self._located(theirs)
        if there is None:
            return None if here is None else f"{node.name} takes {mine.name}, the same place in other steps does not"
        lag = self.middle - there[0]
        if here is None or here[0] < self.first:
            if lag < 1 or step > self.middle:
                return f"{node.name} takes another operand than in other steps"
            # Only the first steps may take their carried values from elsewhere.
            self.first = max(self.first, step - lag + 1)
            return None
        if here == (step - lag, there[1]):
            return None
        return f"{node.name} takes {mine.name} instead of the value {lag} steps back"

    # ---- the last steps, of which parts that nothing needs have been dropped

    def _add_last_steps(self, found: Unrolled) -> None:
        """Extend the loop by steps that lack some nodes."""
        cursor = self.start + (self.last + 1) * self.period
        model = [self.start + self.middle * self.period + place for place in range(self.period)]
        while cursor < len(self.nodes):
            row: list[Node | None] = []
            position = cursor
            for at in model:
                taken = None
                same = position < len(self.nodes) and self.tokens[position] == self.tokens[at]
                if same and self._fits_last(self.nodes[position], self.nodes[at], found.rows, row):
                    taken = self.nodes[position]
                    position += 1
                row.append(taken)
            missing = [self.nodes[at] for node, at in zip(row, model, strict=True) if node is None]
            if len(missing) * 2 >= self.period or any(_has_effect(node) for node in missing):
                return
            found.rows.append(row)
            cursor = position

    def _fits_last(self, node: Node, model: Node, rows: list[list[Node | None]], row: list[Node | None]) -> bool:
        if type_key(node) != type_key(model):
            return False
        for mine, theirs in zip(leaves_of(node), leaves_of(model), strict=True):
            if isinstance(mine, Node) != isinstance(theirs, Node):
                return False
            there = self._located(theirs)
            if there is not None:
                lag, place = self.middle - there[0], there[1]
                if (row if lag == 0 else rows[-lag])[place] is not mine:
                    return False
            elif isinstance(mine, Node) and any(mine in old for old in (*rows[-1:], row)):
                return False
        return True

    # ---- what each operand is

    def _merged(self, given: list[Any], found: Unrolled, place: int) -> Any:
        """One argument out of those of all steps (fewer, where the last steps lack the node)."""
        first = given[0]
        if isinstance(first, (list, tuple)):
            return tuple(self._merged([value[i] for value in given], found, place) for i in range(len(first)))
        if not isinstance(first, Node) and not isinstance(given[-1], Node):
            value = evenly(given)
            if value is None and first is not None:
                raise NotALoop(f"a number changes unevenly from step to step: {first}, {given[1]}, {given[2]} …")
            return value
        there = self._located(given[self.middle - self.first])
        if there is None:
            nodes = tuple(given)
            if all(node is nodes[0] for node in nodes):
                return External(nodes[0])
            return Each(nodes + nodes[-1:] * (found.steps - len(nodes)))
        lag = self.middle - there[0]
        if lag == 0:
            return Local(there[1])
        return Carry(there[1], lag, tuple(given[:lag]))


def evenly(values: Sequence[Any]) -> Any:
    """The value that all are, or the ``Progression`` they make; None for anything else."""
    first = values[0]
    if all(type(value) is type(first) and value == first for value in values):
        return first
    if any(type(value) is not type(first) for value in values) or type(first) not in (int, float):
        return None
    difference = values[1] - first
    forms = [Progression(first, difference)]
    if type(first) is float and difference:
        forms.append(Progression(0.0, difference) if first == 0.0 else Progression(first, difference))
        over = round(1 / difference)
        forms += [Progression(round(first * over), 1, over)] if over else []
    for form in forms:
        if all(form.at(step) == value and type(form.at(step)) is type(first) for step, value in enumerate(values)):
            return form
    return None


def leaves_of(node: Node) -> Iterator[Any]:
    """Every operand of a node, lists opened."""
    yield from _opened(node.args)
    for value in node.kwargs.values():
        yield from _opened((value,))


def _opened(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _opened(value)
        else:
            yield value


def type_key(node: Node) -> Any:
    """Type and (symbolic) sizes of a node's value, comparable without asking anything of a symbol."""
    return key_of(node.meta.get("val"))


def key_of(value: Any) -> Any:
    """Type and sizes of a value, or of each of several."""
    if isinstance(value, torch.Tensor):
        sizes = tuple(size if isinstance(size, int) else size.node.expr for size in value.shape)
        return value.dtype, value.device, sizes
    if isinstance(value, (list, tuple)):
        return tuple(key_of(item) for item in value)
    return str(value) if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) else type(value)


def _has_effect(node: Node) -> bool:
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return False
    return target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags
