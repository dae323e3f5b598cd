"""Loops of any length: graphs captured at two short lengths, and what they have in common, the length aside.

The second one is captured when a call of another length comes, or at once where the first call is so long that tracing
it would take long. That the two agree is induction from two cases, no proof: forward may branch on its length. So the
first call with sizes that such a graph has not been run at is held against the original, gradients included, as a first
call with a batch of one is, and where the two differ that size gets a graph of its own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import sympy
import torch
from torch import Tensor
from torch.fx import Graph, Node

from ..capture.export import Capture
from ..capture.guards import ShapeGuards
from ..capture.long_loops import LongLoop
from ..capture.signature import Call, map_arguments
from ..capture.throwaway import StateWritten
from ..errors import ItnetError
from ..passes.loops.lengths import Captured, NotGeneral, Spot, generalise
from ..progress import Progress
from ..settings import NEAR_MISSES, debug
from .build import Draft, draft, finish, is_virtual
from .variant import Variant

if TYPE_CHECKING:
    from .program import Program

__all__ = ["build_any_length"]

# Loops of up to this many steps are captured at their own length.
_SHORT = 32
# The lengths at which others are captured; they differ by an odd number, so that halves do not look like differences.
_LENGTHS = (16, 19, 22)
# How often a graph is held against another one.
_TRIES = 2


def build_any_length(program: Program, call: Call, shown: Progress, *, widen: bool) -> Variant:
    """A variant for ``call``: for every length of its loops where that can be, else for the sizes of ``call``.

    Only one for every length has been compared with the original.

    Raises:
        CaptureError: where the model cannot be captured.
    """
    if not program.verified or program.axes == "none" or is_virtual(program.root, call):
        return finish(program, call, draft(program, call, shown, widen=widen), shown)
    known = program.known(call)
    longer = _lengthened(program, known, call, shown)
    if longer is not None:
        return longer
    try:
        drafted = draft(program, call, shown, widen=widen, long=bool(known))
    except LongLoop as loop:
        return _shortened(program, call, loop.length, shown) or finish(
            program, call, draft(program, call, shown, widen=widen), shown
        )
    return finish(program, call, drafted, shown)


def _lengthened(program: Program, known: Sequence[Variant], call: Call, shown: Progress) -> Variant | None:
    """A variant made from one of ``known`` that is for another length.

    None where there is no such variant, or what is captured now is not the same loop; then the reason is noted in its
    journal. What has been captured for that at the length of ``call`` is returned as a variant for this length.
    """
    for variant in known:
        spots = _differing(variant, call.leaves)
        if not spots:
            continue
        assert variant.rolled is not None
        for example in _examples(_length(variant.rolled, spots), call, spots):
            try:
                drafted = draft(program, example, shown)
            except ItnetError:
                if example is call:
                    raise
                continue
            try:
                longer = _merged(program, variant.rolled, variant.capture, drafted, call, spots, shown)
            except NotGeneral as reason:
                variant.journal.fixed = str(reason)
                variant.tries += 1
                if example is call:
                    return finish(program, call, drafted, shown)
                continue
            variant.journal.least, variant.journal.fixed, variant.rolled = longer.journal.least, "", None
            return longer
    return None


def _shortened(program: Program, call: Call, length: int, shown: Progress) -> Variant | None:
    """A variant made from two graphs captured on beginnings of ``call``; None where they are not the same loop."""
    places = {(index, axis) for index, leaf in enumerate(call.leaves) for axis in range(leaf.dim())}
    found = frozenset((index, axis) for index, axis in places if call.leaves[index].shape[axis] == length)
    each = [frozenset(spot for spot in found if spot[1] == axis) for axis in sorted({axis for _, axis in found})]
    for spots in dict.fromkeys([*each, found]):
        try:
            first, second = (draft(program, _at_length(call, spots, short), shown) for short in _LENGTHS[:2])
            if not first.journal.loops():
                return None
            return _merged(program, first.capture.graph, first.capture, second, call, spots, shown)
        except StateWritten:  # at any length; the original is to run first
            raise
        except (ItnetError, NotGeneral) as problem:
            debug(NEAR_MISSES, "not captured at another length: %s", problem)
    return None


def _differing(variant: Variant, leaves: Sequence[Tensor]) -> frozenset[Spot]:
    """The axes on which a call is too long or too short for a graph; empty where that is not all that is wrong."""
    if variant.rolled is None or variant.refused or variant.spots or variant.tries >= _TRIES:
        return frozenset()
    found: dict[Spot, tuple[int, int]] = {}
    for index, (node, leaf) in enumerate(zip(_inputs(variant.rolled), leaves, strict=True)):
        for axis, (size, given) in enumerate(zip(node.meta["val"].shape, leaf.shape, strict=True)):
            if (fixed := _fixed(size)) is not None and fixed != given:
                found[index, axis] = fixed, given
    if len(set(found.values())) != 1:
        return frozenset()
    shapes = [list(leaf.shape) for leaf in leaves]
    for index, axis in found:
        shapes[index][axis] = found[index, axis][0]
    return frozenset(found) if variant.capture.guards.fit(shapes) else frozenset()


def _inputs(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op == "placeholder"]


def _fixed(size: int | torch.SymInt) -> int | None:
    expression = sympy.Integer(size) if isinstance(size, int) else size.node.expr
    return int(expression) if expression.is_Integer else None


def _length(graph: Graph, spots: frozenset[Spot]) -> int:
    index, axis = min(spots)
    return int(_inputs(graph)[index].meta["val"].shape[axis])


def _examples(known: int, call: Call, spots: frozenset[Spot]) -> Iterator[Call]:
    """Calls to capture at, in turn: a short one where the call is long, then the call itself."""
    index, axis = min(spots)
    short = next(length for length in _LENGTHS if length > known or known > _LENGTHS[-1])
    if int(call.leaves[index].shape[axis]) > _SHORT:
        yield _at_length(call, spots, short)
    yield call


def _at_length(call: Call, spots: frozenset[Spot], length: int) -> Call:
    """The beginning of a call: its tensors cut to ``length`` along ``spots``, each laid out in memory as it was."""

    def cut(value: Tensor, axes: Sequence[int]) -> Tensor:
        strides = value.stride()
        order = sorted(range(value.dim()), key=lambda axis: (-strides[axis], axis))
        inverse = [order.index(axis) for axis in range(value.dim())]
        short = value
        for axis in axes:
            short = short.narrow(axis, 0, length)
        return short.permute(order).clone(memory_format=torch.contiguous_format).permute(inverse)

    made: dict[int, Tensor] = {}
    with torch.no_grad():
        for index, leaf in enumerate(call.leaves):
            if axes := [axis for place, axis in spots if place == index]:
                made[id(leaf)] = cut(leaf, axes).requires_grad_(leaf.requires_grad)
    args, kwargs = map_arguments(lambda value: made.get(id(value), value), (call.args, call.kwargs))
    return Call(call.signature, [made.get(id(leaf), leaf) for leaf in call.leaves], args, kwargs)


def _merged(
    program: Program,
    rolled: Graph,
    first: Capture,
    other: Draft,
    call: Call,
    spots: frozenset[Spot],
    shown: Progress,
) -> Variant:
    """The variant for every length, from a re-rolled graph with its capture and a draft of another length.

    It has been compared with the original on ``call``. Raises ``NotGeneral``.
    """
    second = other.capture
    if not other.journal.loops():
        raise NotGeneral("at another length it is no loop")
    if (first.output, first.writes) != (second.output, second.writes):
        raise NotGeneral("another length returns something else")
    both = [
        (Captured(graph, _length(graph, spots), captured.constants, captured.guards.symbols), captured)
        for graph, captured in ((rolled, first), (second.graph, second))
    ]
    # The shorter one is valid under the weaker conditions.
    (shorter, captured), (other_length, _) = sorted(both, key=lambda one: one[0].length)
    graph = generalise(shorter, other_length, spots)
    guards = ShapeGuards([node.meta["val"] for node in _inputs(graph)])
    merged = dataclasses.replace(other, capture=dataclasses.replace(captured, graph=graph, guards=guards))
    longer = finish(program, call, merged, shown)
    longer.rolled, longer.spots = None, spots
    mode = longer.label.partition(":")[0].rstrip(" 0123456789")
    longer.label = f"{mode} (any length from {shorter.length} on)"
    longer.journal.least = shorter.length
    longer.trial = program.try_out(longer, call, gradients=True)
    if not longer.trust(call.leaves, longer.trial):
        found = "could not be run" if longer.trial is None else longer.trial.describe()
        raise NotGeneral(f"the graph made for every length: {found}")
    return longer
