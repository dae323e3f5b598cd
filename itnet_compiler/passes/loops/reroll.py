"""Re-rolling: the unrolled loops of a captured graph, each proven to be one and written as one.

    periods      where in a graph do operators recur?          (a guess)
    unrolled     are these the same step again and again?      (the proof)
    rolled       what is given, shared, carried, written?
    rewrite      batched operators, and a recurrent core

Loops inside loops go first where they are longer; a loop that another one needs re-rolled before it can be is tried
again after it. What is no loop after all stays as it is, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Graph, Node

from ...ir.domain import Past
from ...ir.integral import Integral, Plan, Verification
from ...ir.kernel import Spec
from ...ir.mode import mode_of
from ...ir.naming import module_path, source_line
from ...lowering.base import default_lowering
from ...settings import NEAR_MISSES, debug
from ..effects import Effects
from ..journal import Entry, Journal
from ..operators import CUMULATIVE, MIXING, RECURRENCES, operator_name
from ..sampling import like
from .affine import as_scans
from .associative import Associative, associative_scans
from .called import Called
from .cells import as_layer
from .core import Core
from .emitter import Emitter, drop_dead
from .equivalence import check_replacement
from .given import Given, given_loops
from .periods import stretches, tokens
from .rewrite import Realise, Rewrite
from .rolled import Rolled, roll
from .unrolled import NotALoop, Unrolled, align
from .uses import find_uses

__all__ = ["reroll"]

Maker = Callable[..., Node]
Way = Callable[[Core, Emitter, Maker], "list[Node] | None"]

# Loops of one graph, and stretches that are tried before the next loop is found.
_MOST_LOOPS, _MOST_TRIES = 64, 24
# A network may repeat itself four times by chance of design; a loop that takes and gives nothing has to be longer.
_LEAST_ITERATIONS = 8


def reroll(graph: Graph, journal: Journal, *, verify: bool, name: Callable[[str], str]) -> None:
    """Replace every unrolled loop that can be proven to be one, in place.

    Args:
        graph: Flat ATen graph, before any other rewrite.
        journal: Gets an entry for every loop, and for what nearly was one.
        verify: Whether each rewrite is run against the steps it replaces.
        name: Makes a unique name for an integral out of what it is called.
    """
    refused: dict[Node, NotALoop] = {}
    given: list[tuple[Node, type[Called], tuple[Way, ...]]] = [
        *((node, Given, _ways()) for node in given_loops(graph)),
        *((node, Associative, (as_scans,)) for node in associative_scans(graph)),
    ]
    for node, kind, ways in given:
        try:
            _rewrite_given(kind.read(graph, node), ways, journal, verify, name)
        except Exception as error:
            refused[node] = error if isinstance(error, NotALoop) else NotALoop(f"the search failed: {error!r}")
    for _ in range(_MOST_LOOPS):
        if not _reroll_one(graph, journal, verify, name, refused):
            break
    for node, reason in refused.items():
        if not node._erased:
            journal.add(_entry("refused", node, reason=reason.reason))


def _reroll_one(
    graph: Graph, journal: Journal, verify: bool, name: Callable[[str], str], refused: dict[Node, NotALoop]
) -> bool:
    nodes = [node for node in graph.nodes if node.op in ("call_function", "call_module")]
    if len(nodes) < 8:
        return False
    sequence, effects = tokens(nodes), None
    if next(stretches(sequence), None) is not None and _skip_whole_slices(nodes):
        return _reroll_one(graph, journal, verify, name, refused)
    for tried, stretch in enumerate(stretches(sequence)):
        if tried >= _MOST_TRIES:
            break
        effects = effects or Effects(graph)
        try:
            loop = align(nodes, sequence, stretch)
            rolled = roll(loop, effects)
            _worth_it(loop, rolled)
            _rewrite(graph, loop, rolled, effects, journal, verify, name)
        except Exception as error:
            reason = error if isinstance(error, NotALoop) else NotALoop(f"the search failed: {error!r}")
            debug(NEAR_MISSES, "not a loop, %s: %s", stretch, reason.reason)
            if stretch.steps >= _LEAST_ITERATIONS:
                refused.setdefault(nodes[stretch.start], reason)
            continue
        refused.clear()
        return True
    return False


def _skip_whole_slices(nodes: list[Node]) -> bool:
    """Take out slices of everything, with which ``x[:, t]`` begins, but not always; whether there were any."""
    found = False
    for node in nodes:
        if str(node.target) != "aten.slice.Tensor" or any(user.op == "output" for user in node.users):
            continue
        source, start, stop, step = node.args[0], *(*node.args[2:], *(None, None, 1)[len(node.args) - 2 :])
        if start in (0, None) and stop in (None, torch.iinfo(torch.int64).max) and step == 1 and not node.kwargs:
            node.replace_all_uses_with(source)  # type: ignore[arg-type]
            node.graph.erase_node(node)
            found = True
    return found


def _worth_it(loop: Unrolled, rolled: Rolled) -> None:
    """Refuse what is better left as it is."""
    first = loop.nodes[0]
    if not rolled.calls:
        raise NotALoop("its steps compute nothing", first)
    if any(node.op == "call_module" for node in loop.nodes):
        raise NotALoop("a loop whose steps are loops", first)
    modes = {mode_of(node) for node in loop.nodes}
    if len(modes) > 1:
        raise NotALoop("its steps run under different modes", first)
    if rolled.inputs:
        return
    if loop.steps < _LEAST_ITERATIONS:
        raise NotALoop(f"fewer than {_LEAST_ITERATIONS} steps, which are given nothing", first)
    for node in loop.rows[0]:
        found = "" if node is None else operator_name(node)
        if found in CUMULATIVE or (found in MIXING and found not in RECURRENCES):
            raise NotALoop(f"its steps are layers: each has {MIXING.get(found, found)}", node)


def _rewrite(
    graph: Graph,
    loop: Unrolled,
    rolled: Rolled,
    effects: Effects,
    journal: Journal,
    verify: bool,
    name: Callable[[str], str],
) -> None:
    uses = find_uses(loop)
    failure: NotALoop | None = None
    for way in _ways():
        made: list[Integral] = []
        rewrite = Rewrite(graph, loop, rolled, uses, effects)
        try:
            if not rewrite.build(_named(way, made, loop.nodes[0], name)):
                continue
            verification = Verification("skipped", note="verify=False")
            replacement = rewrite.replacement()
            if verify:
                verification = check_replacement(replacement)
        except NotALoop as reason:
            rewrite.emit.undo()
            failure = reason
            continue
        except Exception as error:
            # A fault of ours must not cost the user the other rewrites.
            verification = Verification("failed", note=f"{type(error).__name__}: {error}")
        if verification.status == "failed":
            rewrite.emit.undo()
            debug(NEAR_MISSES, "a loop is rolled back: %s", verification.note)
            journal.add(_entry("rolled back", loop.nodes[0], reason=verification.note, error=verification.error))
            failure = NotALoop(verification.note, loop.nodes[0])
            continue
        for integral in made:
            integral.verification = verification
        names = tuple(node.name for node in loop.nodes)
        anchor = loop.nodes[0]
        label = made[0].name if made else None
        journal.add(_entry("replaced", anchor, integral=label, nodes=names, error=verification.error, steps=loop.steps))
        drop_dead(rewrite.commit())
        return
    raise failure or NotALoop("nothing can run its core", loop.nodes[0])


def _rewrite_given(
    given: Called, ways: tuple[Way, ...], journal: Journal, verify: bool, name: Callable[[str], str]
) -> None:
    node, note = given.node, "nothing can run its core"
    for way in ways:
        made: list[Integral] = []
        verification = Verification("skipped", note="verify=False")
        try:
            replacement = given.build(_named(way, made, node, name))
            if replacement is None:
                continue
            if verify:
                verification = check_replacement(replacement)
        except BaseException:
            given.emit.undo()
            raise
        if verification.status == "failed":
            given.emit.undo()
            note = verification.note
            continue
        for integral in made:
            integral.verification = verification
        names = tuple(one.name for one in replacement.old)
        label = made[0].name if made else None
        journal.add(_entry("replaced", node, integral=label, nodes=names, error=verification.error))
        given.commit(replacement)
        drop_dead(list(replacement.new))
        return
    raise NotALoop(note, node)


def _ways() -> tuple[Way, ...]:
    """Ways to run a core, the best first."""
    return (as_layer, as_scans, _as_loop)


def _as_loop(core: Core, emit: Emitter, integral: Maker) -> list[Node]:
    """Any core that carries something: step by step."""
    if not core.body.carried:
        raise NotALoop("its steps carry nothing from one to the next, and cannot be taken at once")
    spec = Spec(core.kernel(), Past(), "loop", ("initial", "inputs", "shared"))
    values = []
    for ref, axis in zip(core.body.outputs, core.stacked, strict=True):
        values.append(
            emit.run(
                lambda v, n, a: v.unsqueeze(a).expand(*v.shape[:a], n, *v.shape[a:]).clone(),
                core.types[ref],
                core.steps,
                axis,
            )
        )
    values += [core.types[ref] for ref in core.body.finals]
    return emit.pieces(integral(spec, core.operands(), tuple(values)))


def _named(way: Way, made: list[Integral], anchor: Node, name: Callable[[str], str]) -> Realise:
    """A way with the means to make integrals, which are noted in ``made``."""

    def realise(core: Core, emit: Emitter) -> list[Node] | None:
        def integral(spec: Spec, operands: dict[str, Any], values: tuple[Any, ...]) -> Node:
            path = module_path(anchor)
            found = Integral(
                spec,
                default_lowering(spec).build(spec),
                Plan(default_lowering(spec).name),
                name=name(path or spec.origin),
                module_path=path,
                source_line=source_line(anchor),
                verification=Verification("skipped"),
                examples={role: like(operand) for role, operand in operands.items()},
            )
            made.append(found)
            return emit.integral(found, operands, values)

        return way(core, emit, integral)

    return realise


def _entry(status: str, anchor: Node, **rest: Any) -> Entry:
    path, line = module_path(anchor), source_line(anchor)
    return Entry(status, "reroll", anchor.name, module_path=path, source_line=line, **rest)
