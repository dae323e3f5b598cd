"""From an aligned loop to its body: what is given at each step, what is shared, what is carried, what is written."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from ...ir.body import Body, Call, Progression, Ref
from ...ir.mode import mode_of
from ..custom import CustomCall
from ..effects import Effects, is_random, written_arguments
from ..match import bind
from ..operators import COPIES, VIEWS, operator_name
from .accesses import Access, access
from .unrolled import Carry, Each, External, Local, NotALoop, Unrolled, evenly

__all__ = ["Rolled", "Write", "roll"]

# Views of views that an operand made before the loop may be.
_MOST_LEVELS = 8


@dataclass(frozen=True)
class Write:
    """``buffer[…, t, …] = value`` at every step."""

    place: int
    to: Access
    value: Ref


@dataclass
class Rolled:
    """A loop that has been proven, ready to be written as one.

    Attributes:
        steps: Number of steps.
        calls: The body's operators.
        carried: For every carried value what it becomes after a step.
        initial: What it is before the first one: a node, or a number.
        inputs: What is given at each step.
        shared: What all steps share: nodes before the loop, or in its first step (see ``hoisted``).
        hoisted: Nodes of the first step that depend on nothing of the loop, in order.
        refs: Place → its value in the body; places that are accesses or hoisted included.
        writes: What the steps write in place.
        outside: Nodes before the loop whose work it takes over: views that are given to single steps.
    """

    steps: int
    calls: list[Call] = field(default_factory=list)
    carried: list[Ref] = field(default_factory=list)
    initial: list[Any] = field(default_factory=list)
    inputs: list[Access] = field(default_factory=list)
    shared: list[Node] = field(default_factory=list)
    hoisted: list[Node] = field(default_factory=list)
    refs: dict[int, Ref] = field(default_factory=dict)
    writes: list[Write] = field(default_factory=list)
    outside: set[Node] = field(default_factory=set)

    def body(self, outputs: tuple[Ref, ...] = (), finals: tuple[Ref, ...] = ()) -> Body:
        """The whole body as plain data."""
        return Body(tuple(self.calls), tuple(self.carried), outputs, finals)


def roll(loop: Unrolled, effects: Effects) -> Rolled:
    """The body of an aligned loop. Raises ``NotALoop`` where something stands in the way."""
    return _Roller(loop, effects).roll()


class _Roller:
    def __init__(self, loop: Unrolled, effects: Effects) -> None:
        self.loop, self.effects = loop, effects
        self.found = Rolled(loop.steps)
        self.inside = set(loop.nodes)
        self.carries: dict[Any, int] = {}
        self.outer: dict[tuple[Node, ...], Ref] = {}
        self.pending: list[tuple[int, Carry]] = []

    def roll(self) -> Rolled:
        loop = self.loop
        writes = self._check_effects()
        for place in range(len(loop.args)):
            args = tuple(self._operand(value) for value in loop.args[place])
            kwargs = tuple((name, self._operand(value)) for name, value in loop.kwargs[place])
            if place in writes:
                self._write(place, args)
                continue
            if all(_changes_nothing(row[place]) for row in loop.rows) and isinstance(args[0], Ref):
                self.found.refs[place] = args[0]
                continue
            self.found.refs[place] = self._value(loop.target(place), args, kwargs, loop.rows[0][place])
        self._close_carries()
        return self.found

    # ---- values

    def _value(self, target: Any, args: tuple[Any, ...], kwargs: Any, first: Node | None) -> Ref:
        """The value of one operator in the body."""
        known = tuple(self._node(value) for value in args)
        found = access(target, known, self.loop.steps)
        if isinstance(found, str):
            raise NotALoop(found, first)
        if found is not None:
            if known[0] is not found.source and known[0] not in self.inside:
                self.found.outside.add(known[0])  # one of its pieces at each step
            return self._given(found)
        fixed = all(_is_fixed(value) for value in (*args, *(value for _, value in kwargs)))
        own = isinstance(target, CustomCall)
        if fixed and not own and first is not None and first in self.inside and _is_pure(first):
            self.found.hoisted.append(first)
            return self._shared(first)
        name: Any
        if target is operator.getitem:
            name = "getitem"
        elif own:
            if any(isinstance(value, tuple) for value in args):
                raise NotALoop(f"{target} takes more than tensors and numbers", first)
            name = target
        elif isinstance(target, torch._ops.OpOverload):
            name = _functional(target) if _is_in_place(target) else str(target)
        else:
            raise NotALoop(f"{getattr(target, '__name__', target)} is no operator on tensors", first)
        self.found.calls.append(Call(name, args, kwargs))
        return Ref("local", len(self.found.calls) - 1)

    def _node(self, value: Any) -> Any:
        """A shared value as its node, for an access to look at."""
        return self.found.shared[value.index] if isinstance(value, Ref) and value.kind == "shared" else value

    def _given(self, found: Access) -> Ref:
        if found not in self.found.inputs:
            self.found.inputs.append(found)
        return Ref("step", self.found.inputs.index(found))

    def _shared(self, node: Node) -> Ref:
        if node not in self.found.shared:
            self.found.shared.append(node)
        return Ref("shared", self.found.shared.index(node))

    def _operand(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(self._operand(item) for item in value)
        if isinstance(value, Local):
            if value.place not in self.found.refs:
                raise NotALoop("the result of a write is used", self.loop.rows[0][value.place])
            return self.found.refs[value.place]
        if isinstance(value, External):
            return self._shared(value.node)
        if isinstance(value, Carry):
            return self._carry(value)
        if isinstance(value, Each):
            return self._each(value.nodes, 0)
        return value

    # ---- carried values

    def _carry(self, value: Carry) -> Ref:
        """A value of an earlier step; one of several steps back is handed on from carry to carry."""
        key = (value.place, value.lag, value.initial)
        if key not in self.carries:
            if value.lag > 1:
                newer = Carry(value.place, value.lag - 1, value.initial[1:])
                source: Any = self._carry(newer)
            else:
                source = value
            self.carries[key] = len(self.found.carried)
            self.found.carried.append(source if isinstance(source, Ref) else Ref("local", -1))
            self.found.initial.append(value.initial[0])
            if not isinstance(source, Ref):
                self.pending.append((self.carries[key], value))
        return Ref("carry", self.carries[key])

    def _close_carries(self) -> None:
        for index, value in self.pending:
            self.found.carried[index] = self.found.refs[value.place]

    # ---- operands that are made for each step before the loop

    def _each(self, nodes: tuple[Node, ...], level: int) -> Ref:
        if nodes in self.outer:
            return self.outer[nodes]
        first = nodes[0]
        name = operator_name(first)
        movable = name == "getitem" or name in VIEWS | COPIES
        if level > _MOST_LEVELS or first.op != "call_function" or not movable or _is_in_place(first.target):
            raise NotALoop("every step has an operand of its own, made before the loop", first)
        if any(node.target != first.target or len(node.args) != len(first.args) for node in nodes):
            raise NotALoop("the steps have operands of different kinds, made before the loop", first)
        if any(mode_of(node) != mode_of(self.loop.nodes[0]) for node in nodes):
            raise NotALoop("what the steps take was made under another mode", first)
        self._check_untouched(nodes)
        args = tuple(self._all([node.args[i] for node in nodes], level) for i in range(len(first.args)))
        kwargs = tuple((key, self._all([node.kwargs.get(key) for node in nodes], level)) for key in first.kwargs)
        self.found.outside.update(nodes)
        self.outer[nodes] = self._value(first.target, args, kwargs, first)
        return self.outer[nodes]

    def _all(self, given: list[Any], level: int) -> Any:
        first = given[0]
        if isinstance(first, (list, tuple)):
            if any(not isinstance(value, (list, tuple)) or len(value) != len(first) for value in given):
                raise NotALoop("the steps have operands of different kinds, made before the loop")
            return tuple(self._all([value[i] for value in given], level) for i in range(len(first)))
        if isinstance(first, Node):
            if all(value is first for value in given):
                return self._shared(first)
            if not all(isinstance(value, Node) for value in given):
                raise NotALoop("the steps have operands of different kinds, made before the loop", first)
            return self._each(tuple(given), level + 1)
        value = evenly(given)
        if value is None and first is not None:
            raise NotALoop("the steps have operands that change unevenly, made before the loop")
        return value

    # ---- effects

    def _check_untouched(self, nodes: tuple[Node, ...]) -> None:
        """What was read before the loop is read in it now: nothing may be written in between."""
        start, stop = min(nodes), max(self.inside)
        if (writer := self.effects.writer_between(start, stop, nodes)) is not None:
            raise NotALoop(f"{operator_name(writer)} writes in place to what the steps take", writer)

    def _check_effects(self) -> set[int]:
        """Places that write to a buffer outside. Raises where the loop does anything else than compute."""
        loop, writes = self.loop, set()
        for place in range(len(loop.args)):
            nodes = [node for row in loop.rows if (node := row[place]) is not None]
            target = loop.target(place)
            if not isinstance(target, torch._ops.OpOverload) or not written_arguments(nodes[0]):
                continue
            if str(target) == "aten.copy_.default" and isinstance(loop.args[place][0], Local):
                writes.add(place)
                for node in nodes:
                    self._check_write(node)
                continue
            if not _is_in_place(target) or not _keeps_type(nodes[0]):
                raise NotALoop(f"{target} writes to its arguments", nodes[0])
            for node in nodes:
                if (problem := self.effects.read_again(node)) is not None:
                    raise NotALoop(problem, node)
        return writes

    def _check_write(self, node: Node) -> None:
        """The buffer must not be touched by anything else in the loop."""
        if node.users:
            raise NotALoop("the result of a write is used", node)
        buffer = self.effects.sharing(node.all_input_nodes[0])
        for other in buffer:
            if other in self.inside and other.target != node.target and operator_name(other) not in VIEWS:
                raise NotALoop(f"{other.name} touches the buffer that is written", other)
            for user in other.users:
                if user in self.inside and user not in buffer:
                    raise NotALoop(f"{user.name} reads the buffer that is written", user)

    def _write(self, place: int, args: tuple[Any, ...]) -> None:
        to, value = args[0], args[1]
        node = self.loop.rows[0][place]
        if not isinstance(to, Ref) or to.kind != "step" or not isinstance(value, Ref):
            raise NotALoop("what is written is not one place after the other", node)
        if any(value_ is not None for value_ in args[2:]) and args[2:] != (False,):
            raise NotALoop("a write that does not wait", node)
        where = self.found.inputs[to.index]
        assert node is not None
        target, given = node.args[0], node.args[1]
        if not isinstance(given, Node) or _sizes(target) != _sizes(given):
            raise NotALoop("what is written is spread over the place it is written to", node)
        buffer = self.effects.sharing(where.source)
        if any(write.to.source in buffer for write in self.found.writes):
            raise NotALoop("a step writes to one buffer more than once", node)
        self.found.writes.append(Write(place, where, value))


def _sizes(node: Any) -> tuple[Any, ...]:
    return tuple(s if isinstance(s, int) else s.node.expr for s in node.meta["val"].shape)


def _is_fixed(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(_is_fixed(item) for item in value)
    return not isinstance(value, Progression) and (not isinstance(value, Ref) or value.kind == "shared")


def _is_pure(node: Node) -> bool:
    return not is_random(node) and not written_arguments(node)


def _changes_nothing(node: Node | None) -> bool:
    """Whether a node converts a tensor to the dtype and device that it has; the graph is for these alone."""
    if node is None:
        return True
    if not str(node.target).startswith(("aten.to.dtype", "aten.to.device", "aten.type_as.")):
        return False
    given, made = node.args[0].meta["val"], node.meta["val"]
    named = bind(node)
    return (given.dtype, given.device) == (made.dtype, made.device) and not (
        named.get("copy") or named.get("memory_format")
    )


def _is_in_place(target: Any) -> bool:
    """Whether an operator writes its first argument and returns it (``add_``)."""
    if not isinstance(target, torch._ops.OpOverload):
        return False
    name = target._schema.name
    return target._schema.is_mutable and name.endswith("_") and not name.endswith("__")


def _keeps_type(node: Node) -> bool:
    """Whether the operator out of place has a result of the same type and sizes as that in place."""
    values = [source.meta.get("val") for source in node.all_input_nodes]
    return all(not isinstance(v, torch.Tensor) or v.dtype == node.meta["val"].dtype for v in values)


def _functional(target: torch._ops.OpOverload) -> str:
    """The operator that computes what ``target`` writes. Raises ``NotALoop`` where there is none."""
    space, name = target._schema.name.split("::")
    packet = getattr(getattr(torch.ops, space), name.removesuffix("_"), None)
    overload = target._overloadname
    if packet is None or overload not in packet.overloads():
        raise NotALoop(f"{target} works in place")
    return f"{space}.{name.removesuffix('_')}.{overload}"
