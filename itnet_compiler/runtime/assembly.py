"""A unified model as the boundaries that it consists of: which run graphs, which run their original code."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from torch import nn
from torch.nn.parameter import is_lazy

from ..errors import LoweringError
from ..lowering.planner import PlanRule
from .program import Program

__all__ = ["graphs", "left", "parts", "plan", "programs", "share"]


def _below(program: Program) -> Iterator[Program]:
    """The nearest boundaries below one, in the order of the module tree."""
    waiting = list(reversed(list(program.root.children())))
    seen: set[int] = set()
    while waiting:
        module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        inner = program.face.program(module)
        if inner is not None:
            yield inner
        else:
            waiting += reversed(list(module.children()))


def programs(program: Program) -> Iterator[Program]:
    """A program and those of all boundaries below it."""
    yield program
    for inner in _below(program):
        yield from programs(inner)


def graphs(program: Program) -> list[Program]:
    """The outermost programs that run a graph in the current mode: this one, or else some below it."""
    if program.whole:
        return [program]
    return [found for inner in _below(program) for found in graphs(inner)]


def left(program: Program) -> list[Program]:
    """Boundaries that are in no graph: those that could not be captured, this one included."""
    if program.whole:
        return []
    return [program, *(found for inner in _below(program) for found in left(inner))]


def parts(program: Program) -> dict[str, nn.Module]:
    """Path → module of the parts that run graphs; empty where the whole is one graph."""
    return {} if program.whole else {found.path: found.root for found in graphs(program)}


def share(program: Program) -> float:
    """Share of the parameters (by elements) inside graphs, 0 … 1; 1 for a model that has none."""
    total = {id(tensor): tensor.numel() for tensor in program.root.parameters() if not is_lazy(tensor)}
    inside = {id(tensor) for found in graphs(program) for tensor in found.root.parameters()}
    everything = sum(total.values())
    return sum(size for key, size in total.items() if key in inside) / everything if everything else 1.0


def plan(program: Program, rule: PlanRule | None) -> None:
    """Add a plan rule to a program and all below it, for present and later variants; None forgets all rules.

    Raises:
        LoweringError: if no integral has such a name, or one does not support what the rule asks for. Then nothing
            has changed.
    """
    if rule is not None:
        names = [integral.name for found in graphs(program) for integral in found.current.integrals]
        if not any(fnmatch.fnmatchcase(name, rule.pattern) for name in names):
            some = ", ".join(names[:5])
            raise LoweringError(f"no integral is called {rule.pattern!r}", remedy=f"the names are {some} …")
    before = [(inner, inner.plan_rules) for inner in programs(program)]
    try:
        for inner, rules in before:
            inner.plan([] if rule is None else [*rules, rule])
    except Exception:
        for inner, rules in before:
            inner.plan(rules)
        raise
