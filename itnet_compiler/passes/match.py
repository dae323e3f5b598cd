"""The vocabulary in which detection rules are written: bound arguments, requirements with reasons, proposals.

A rule is a function from an anchor node to a ``Proposal``; it never edits the graph. Whatever it cannot accept it
refuses with a reason, the node and a depth (how many requirements had been met), so that the closest near miss can be
reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch.fx import Node

from ..ir.kernel import Spec
from ..ir.mode import describe_mode, mode_of

__all__ = [
    "Match",
    "Proposal",
    "Refusal",
    "Rule",
    "Unrelated",
    "bind",
    "is_made",
    "op_name",
    "present",
    "propose",
    "rank",
    "rule",
    "shape_of",
    "value_of",
]


def op_name(node: Node) -> str:
    """``aten.conv2d.default`` for an operator call; the qualified function name or target otherwise."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target)
    if callable(target):
        return f"{getattr(target, '__module__', '')}.{getattr(target, '__name__', target)}".lstrip(".")
    return str(target)


def bind(node: Node) -> dict[str, Any]:
    """Arguments of an operator call by schema name, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return {str(position): value for position, value in enumerate(node.args)} | dict(node.kwargs)
    bound: dict[str, Any] = {}
    for position, argument in enumerate(node.target._schema.arguments):
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        elif argument.name in node.kwargs:
            bound[argument.name] = node.kwargs[argument.name]
        else:
            bound[argument.name] = argument.default_value
    return bound


def value_of(node: Node) -> Any:
    """Fake value recorded at capture: a tensor with (possibly symbolic) shape, a SymInt, or a tuple of them."""
    return node.meta.get("val")


def is_made(node: Node) -> bool:
    """Whether a node's value is made out of numbers and sizes alone (``full``, ``arange``, comparisons of them)."""
    seen: set[Node] = set()
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if one in seen:
            continue
        seen.add(one)
        target = one.target
        if one.op != "call_function" or not isinstance(target, torch._ops.OpOverload) or target._schema.is_mutable:
            return False
        if torch.Tag.nondeterministic_seeded in target.tags or len(seen) > _MOST_MADE:
            return False
        waiting += [source for source in one.all_input_nodes if isinstance(value_of(source), torch.Tensor)]
    return True


# A mask is made in fewer steps.
_MOST_MADE = 64


def shape_of(node: Node) -> tuple[Any, ...]:
    """Shape of a tensor node; entries are int or SymInt."""
    return tuple(value_of(node).shape)


def rank(node: Node) -> int:
    """Number of axes of a tensor node."""
    return len(shape_of(node))


class Refusal(Exception):
    """Why a rule did not accept a node.

    Attributes:
        reason: One sentence.
        node: The graph node at fault.
        depth: How many requirements had been met; the deepest refusal is the nearest miss.
        passed: Nodes that the rule had accepted as parts of what it looked for.
    """

    def __init__(self, reason: str, node: Node, depth: int, passed: tuple[Node, ...] = ()) -> None:
        super().__init__(reason)
        self.reason, self.node, self.depth, self.passed = reason, node, depth, passed


class Unrelated(Refusal):
    """A refusal at a node that has nothing of what the rule looks for, as most sums have not: not worth telling."""


@dataclass
class Match:
    """Progress of one rule at one anchor; counts the requirements met, and notes the nodes passed."""

    anchor: Node
    depth: int = 0
    passed: dict[Node, None] = field(default_factory=dict)

    def require(self, condition: object, reason: str, node: Node | None = None) -> None:
        """Refuse with ``reason`` unless ``condition`` holds."""
        if not condition:
            self.refuse(reason, node)
        self.depth += 1

    def refuse(self, reason: str, node: Node | None = None) -> NoReturn:
        """Give up with ``reason``."""
        raise Refusal(reason, node if node is not None else self.anchor, self.depth, tuple(self.passed))

    def call(self, node: object, *names: str, reason: str | None = None) -> dict[str, Any]:
        """Require ``node`` to be a call of one of the operators ``names``; its bound arguments."""
        found = isinstance(node, Node) and node.op == "call_function" and op_name(node) in names
        shown = op_name(node) if isinstance(node, Node) else repr(node)
        where = node if isinstance(node, Node) else None
        self.require(found, reason or f"expected {' or '.join(names)}, found {shown}", where)
        return bind(node)  # type: ignore[arg-type]

    def closed(self, region: Iterable[Node], outputs: Sequence[Node], operands: Mapping[str, Node]) -> None:
        """Require that of ``region`` nothing but ``outputs`` is used outside, and that no operand is part of it."""
        inside = set(region)
        for one in region:
            used = one not in outputs and not is_made(one) and any(user not in inside for user in one.users)
            self.require(not used, f"the intermediate value {one.name} is used elsewhere", one)
        for role, node in operands.items():
            self.require(node not in inside, f"the {role} is part of the integral itself", node)

    def literal(self, value: object, what: str) -> Any:
        """Require ``value`` to hold no graph node (a plain Python value, or nested list of them)."""
        self.require(not _holds_node(value), f"{what} is computed at run time")
        return tuple(value) if isinstance(value, (list, tuple)) else value


def _holds_node(value: object) -> bool:
    if isinstance(value, (list, tuple)):
        return any(_holds_node(item) for item in value)
    return isinstance(value, Node)


@dataclass(frozen=True)
class Proposal:
    """What a rule offers: replace ``region`` by one integral.

    Attributes:
        spec: The node to make.
        operands: Role → graph node, literal, or list of them; roles with None are left out (as in ``spec.operands``).
        region: Nodes to be replaced, anchor included.
        outputs: Region nodes whose values are used outside. One: the integral takes its place, returning the same
            structure. Several: the integral returns a tuple in this order.
        shared: Region nodes that only move values about and that others may take too: they stay where these do.
    """

    spec: Spec
    operands: dict[str, Any]
    region: tuple[Node, ...]
    outputs: tuple[Node, ...]
    shared: frozenset[Node] = frozenset()

    def may_stay(self, node: Node) -> bool:
        """Whether a region node may be used elsewhere, and be part of other regions."""
        return node in self.shared or is_made(node)


RuleFunction = Callable[[Node, Match], Proposal]


@dataclass(frozen=True)
class Rule:
    """A detection rule: its name in the journal, the operators at which it is tried, and the function."""

    name: str
    anchors: frozenset[str]
    function: RuleFunction

    def __call__(self, node: Node) -> Proposal:
        """Propose at ``node``; raises ``Refusal``, also for a region that does not run under one mode."""
        match = Match(node)
        proposal = self.function(node, match)
        for other in proposal.region:
            if (mode := mode_of(other)) != mode_of(node):
                modes = f"{describe_mode(mode_of(node))}, {op_name(other)} under {describe_mode(mode)}"
                match.refuse(f"it runs under different modes: {op_name(node)} under {modes}", other)
        return proposal


def rule(name: str, *anchors: str) -> Callable[[RuleFunction], Rule]:
    """Declare a detection rule, tried at every call of an operator in ``anchors`` (``aten.conv2d.default`` …)."""

    def wrap(function: RuleFunction) -> Rule:
        return Rule(name, frozenset(anchors), function)

    return wrap


def propose(
    spec: Spec,
    operands: dict[str, Any],
    *region: Node,
    outputs: tuple[Node, ...] = (),
    shared: frozenset[Node] = frozenset(),
) -> Proposal:
    """A proposal; operands that are None are dropped, ``outputs`` defaults to the last node of ``region``."""
    kept = {role: value for role, value in operands.items() if value is not None}
    if tuple(kept) != spec.operands:
        raise AssertionError(f"operands {tuple(kept)} do not match the spec's {spec.operands}")
    return Proposal(spec, kept, region, outputs or region[-1:], shared)


def present(operands: dict[str, Any]) -> tuple[str, ...]:
    """Roles whose operand is not None, in order: what ``Spec.operands`` holds."""
    return tuple(role for role, value in operands.items() if value is not None)
