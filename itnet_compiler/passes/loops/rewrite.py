"""An unrolled loop written as one: batched operators before and after, and a recurrent core in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from ...ir.body import Body, Call, Ref, map_refs, refs_of
from ...ir.mode import mode_of
from ..effects import Effects
from .accesses import Access
from .batching import Lifted, batched
from .core import Core, prune
from .emitter import Emitter
from .equivalence import Replacement, read_through
from .fission import Fission, split
from .rolled import Rolled
from .unrolled import NotALoop, Unrolled, key_of
from .uses import Collector, Piece, Uses

__all__ = ["Realise", "Rewrite"]

# Makes nodes for a core, one for each output and final; None where the core is none that it knows.
Realise = Callable[[Core, Emitter], list[Node] | None]


class Rewrite:
    """One attempt to write a loop as one; ``replacement`` says what has been made."""

    def __init__(self, graph: Graph, loop: Unrolled, rolled: Rolled, uses: Uses, effects: Effects) -> None:
        self.graph, self.loop, self.uses, self.effects = graph, loop, uses, effects
        self.last = loop.nodes[-1]
        self.emit = Emitter(graph, self.last.next, loop.nodes[0])
        self.results: list[tuple[Node, Node]] = []
        stacked, finals = sorted(uses.places()), sorted(uses.last())
        needed = [rolled.refs[place] for place in (*stacked, *finals)] + [write.value for write in rolled.writes]
        self.rolled, moved = prune(rolled, needed)
        self.writes = [(write, moved[write.value]) for write in rolled.writes]
        self.stacked = {place: moved[rolled.refs[place]] for place in stacked}
        self.finals = {place: moved[rolled.refs[place]] for place in finals}
        self.copies: dict[Node, Node] = {}
        self.timed: dict[Ref, Node] = {}
        self.whole: dict[Ref, tuple[Node, int]] = {}
        self.last_values: dict[Ref, Node] = {}

    def build(self, realise: Realise) -> bool:
        """Make all nodes; False, with nothing made, where ``realise`` does not know the core."""
        for node in self.rolled.hoisted:
            self.copies[node] = self.emit.copy(node, self.copies)
        self.types = self._types()
        body = self.rolled.body(tuple(self.stacked.values()), tuple(self.finals.values()))
        parts = self.parts = split(body, self.types.__getitem__, self.loop.steps)
        for index, access in enumerate(self.rolled.inputs):
            self.whole[Ref("step", index)] = self._moved(access).whole(self.emit, self.loop.steps)
        if not self._core(body, parts, realise):
            self.emit.undo()
            return False
        self._write()
        self._collect()
        return True

    def replacement(self) -> Replacement:
        """What to compare."""
        loop = [*self.loop.nodes, *(collector.node for collector in self.uses.collectors)]
        before = {*self.rolled.outside, *read_through([*self.rolled.outside, *loop], self.emit.made)}
        if before and self.effects.writer_between(min(before), self.last, before) is not None:
            raise NotALoop("something writes in place to what a layer would take", self.last)
        old = [*sorted(before), *loop]
        made = Replacement(old, self.emit.made, self.results)
        buffers = {node for write, _ in self.writes for node in self.effects.sharing(write.to.source)}
        return Replacement(old, self.emit.made, self.results, tuple(n for n in made.inputs() if n in buffers))

    def commit(self) -> list[Node]:
        """Let everything use the new nodes; the nodes that nothing needs any more."""
        for old, new in self.results:
            old.replace_all_uses_with(new)
        dead = [*self.loop.nodes, *(collector.node for collector in self.uses.collectors)]
        for node in reversed(dead):
            for user in list(node.users):
                assert user._erased or user in dead, f"{node} is still used by {user}"
            self.graph.erase_node(node)
        return [*self.rolled.outside, *(access.source for access in self.rolled.inputs), *self.emit.made]

    # ---- types

    def _types(self) -> dict[Ref, Any]:
        """Fake value of every reference in one step."""
        rolled, found = self.rolled, {}
        for index, node in enumerate(rolled.shared):
            found[Ref("shared", index)] = self.copies.get(node, node).meta["val"]
        for index, access in enumerate(rolled.inputs):
            value = access.source.meta["val"]
            kept = (access.axis, access.start, access.start + access.width) if access.width else None
            found[Ref("step", index)] = self.emit.run(
                (lambda v, k: v.narrow(k[0], k[1], k[2] - k[1])) if kept else (lambda v, k: v.select(*k)),
                value,
                kept or (access.axis, access.start),
            )
        for index, initial in enumerate(rolled.initial):
            if not isinstance(initial, Node) or not isinstance(initial.meta.get("val"), Tensor):
                raise NotALoop("a carried value is no tensor")
            found[Ref("carry", index)] = initial.meta["val"]
        sources = {kind: tuple(v for r, v in found.items() if r.kind == kind) for kind in ("carry", "step", "shared")}
        body = rolled.body()
        values = self.emit.run(lambda: body.run(0, sources["carry"], sources["step"], sources["shared"]))
        found |= {Ref("local", index): value for index, value in enumerate(values)}
        for index, ref in enumerate(rolled.carried):
            if key_of(found[ref]) != key_of(found[Ref("carry", index)]):
                raise NotALoop(
                    "a carried value begins with another size or type than it has later", rolled.initial[index]
                )
        return found

    # ---- nodes for all steps

    def _all_steps(self, ref: Ref) -> Node:
        """A reference with the time axis in front."""
        if ref not in self.timed:
            if ref.kind == "local" and ref not in self.whole:
                self._in_place(ref)
            if ref in self.whole:
                node, axis = self.whole[ref]
                self.timed[ref] = self.emit("aten.movedim.int", node, axis, 0) if axis else node
            else:
                self.timed[ref] = self._late(ref.index) if ref.kind == "carry" else self._batch(ref.index)
        return self.timed[ref]

    def _in_place(self, ref: Ref) -> None:
        """A linear map of a whole tensor, done where that has its time: in front of it the product would copy it."""
        call = self.rolled.calls[ref.index]
        if call.name != "linear" or call.kwargs or not isinstance(call.args[0], Ref):
            return
        given, weights = call.args[0], call.args[1:]
        if given in self.whole and not any(self._is_timed(one) for one in refs_of(weights)):
            node, axis = self.whole[given]
            if 0 < axis < node.meta["val"].dim() - 1:
                self.whole[ref] = self.emit(call.target, node, *map(self._operand, weights)), axis

    def _late(self, index: int) -> Node:
        """A carried value that is one step late: the initial one, then all but the last."""
        initial, source = self.rolled.initial[index], self._all_steps(self.rolled.carried[index])
        kept = self.emit("aten.slice.Tensor", source, 0, 0, -1, 1)
        return self.emit("aten.cat.default", [self.emit("aten.unsqueeze.default", initial, 0), kept], 0)

    def _is_timed(self, ref: Ref) -> bool:
        return ref.kind != "shared"

    def _batch(self, index: int) -> Node:
        call = batched(self.rolled.calls[index], self.types.__getitem__, self._is_timed, self.loop.steps)
        assert call is not None
        return self._emit_call(call)

    def _emit_call(self, call: Call) -> Node:
        return self.emit(
            call.target, *(self._operand(value) for value in call.args), **{k: self._operand(v) for k, v in call.kwargs}
        )

    def _operand(self, value: Any) -> Any:
        if isinstance(value, Lifted):
            node = self._all_steps(value.ref)
            for _ in range(value.rank + 1 - node.meta["val"].dim()):
                node = self.emit("aten.unsqueeze.default", node, 1)
            return node
        if isinstance(value, Ref):
            return self._shared(value) if value.kind == "shared" else self._all_steps(value)
        if isinstance(value, Call):
            return self._emit_call(value)
        return [self._operand(item) for item in value] if isinstance(value, tuple) else value

    def _shared(self, ref: Ref) -> Node:
        node = self.rolled.shared[ref.index]
        return self.copies.get(node, node)

    # ---- the core

    def _core(self, body: Body, parts: Fission, realise: Realise) -> bool:
        """Make the recurrent core, if there is one, and note where its results are."""
        wanted = [ref for index in sorted(parts.after) for ref in refs_of(body.calls[index])]
        wanted += [*self.stacked.values(), *(ref for _, ref in self.writes)]
        outputs = tuple(dict.fromkeys(filter(self._from_core, wanted)))
        finals = tuple(dict.fromkeys(filter(self._from_core, self.finals.values())))
        if not outputs and not finals:
            return True
        core = self._cut(body, outputs, finals)
        made = realise(core, self.emit)
        if made is None:
            return False
        for ref, node, axis in zip(outputs, made, core.stacked, strict=False):
            self.whole[ref] = node, axis
        self.last_values |= dict(zip(finals, made[len(outputs) :], strict=True))
        return True

    def _cut(self, body: Body, outputs: tuple[Ref, ...], finals: tuple[Ref, ...]) -> Core:
        """The core of ``body``: its own calls and carried values, with what is made before it as further inputs."""
        kept = [index for index in range(len(body.carried)) if index not in self.parts.shifted]
        new = {Ref("local", old): Ref("local", place) for place, old in enumerate(self.parts.core)}
        new |= {Ref("carry", old): Ref("carry", place) for place, old in enumerate(kept)}
        given: dict[str, list[Ref]] = {"step": [], "shared": []}

        def moved(ref: Ref) -> Ref:
            if ref not in new:
                kind = "shared" if ref.kind == "shared" else "step"
                new[ref] = Ref(kind, len(given[kind]))
                given[kind].append(ref)
            return new[ref]

        calls = tuple(map_refs(body.calls[index], moved) for index in self.parts.core)
        carried = tuple(moved(body.carried[index]) for index in kept)
        program = Body(calls, carried, tuple(map(moved, outputs)), tuple(map(moved, finals)))
        return Core(
            program,
            self.loop.steps,
            [self.rolled.initial[index] for index in kept],
            [self._given(ref) for ref in given["step"]],
            [self._shared(ref) for ref in given["shared"]],
            [self._axis_of(ref) for ref in outputs],
            {fresh: self.types[old] for old, fresh in new.items()},
            mode_of(self.loop.nodes[0]),
        )

    def _given(self, ref: Ref) -> tuple[Node, int]:
        """All steps of a value, with the axis of time that it has."""
        if ref not in self.whole and ref.kind == "local":
            self._in_place(ref)
        return self.whole[ref] if ref in self.whole else (self._all_steps(ref), 0)

    def _from_core(self, ref: Ref) -> bool:
        if ref.kind == "carry":
            return ref.index not in self.parts.shifted
        return ref.kind == "local" and ref.index in self.parts.core

    def _axis_of(self, ref: Ref) -> int:
        """The axis along which an output is collected, where that is all that happens to it; else 0."""
        places = [place for place, one in self.stacked.items() if one == ref]
        whole = [
            collector
            for collector in self.uses.collectors
            for part in collector.parts
            if isinstance(part, Piece) and part.place in places
        ]
        alone = len(whole) == 1 and len(whole[0].parts) == 1 and not any(ref == value for _, value in self.writes)
        return whole[0].axis if alone else 0

    # ---- results

    def _moved(self, access: Access) -> Access:
        """An access of a node that was hoisted, as one of its copy."""
        return dataclasses.replace(access, source=self.copies.get(access.source, access.source))

    def _write(self) -> None:
        for write, ref in self.writes:
            self._moved(write.to).write(self.emit, self._all_steps(ref), self.loop.steps)

    def _collect(self) -> None:
        for node, (step, place) in self.uses.single.items():
            made = self._owned(node, self._single(step, place))
            if made.target is torch.ops.aten.select.int and _is_returned(node):
                # In the source the value of a step lies apart from the stack of all.
                made = self.emit("aten.clone.default", made)
            self.results.append((node, made))
        for collector in self.uses.collectors:
            self.emit.place, self.emit.like = collector.node, collector.node
            self.results.append((collector.node, self._owned(collector.node, self._joined(collector))))

    def _owned(self, old: Node, new: Node) -> Node:
        """A copy, where something writes to the old value later on."""
        if self.effects.written_after(old, self.last):
            return self.emit("aten.clone.default", new)
        return new

    def _single(self, step: int, place: int) -> Node:
        ref = self.finals[place] if place in self.finals else self.stacked[place]
        if ref.kind == "shared":
            return self._shared(ref)
        if place in self.finals and ref in self.last_values:
            return self.last_values[ref]
        node = self.emit("aten.select.int", self._all_steps(ref), 0, step if step >= 0 else self.loop.steps - 1)
        return self.emit("aten.clone.default", node) if self.whole.get(ref, (node, 0))[1] else node

    def _joined(self, collector: Collector) -> Node:
        parts = [self._part(part, collector) for part in collector.parts]
        if len(parts) == 1:
            return parts[0]
        return self.emit("aten.cat.default", parts, collector.axis)

    def _part(self, part: Piece | Node, collector: Collector) -> Node:
        axis = collector.axis
        if isinstance(part, Node):
            part = self.copies.get(part, part)
            for old, new in self.results:
                part = new if old is part else part
            return self.emit("aten.unsqueeze.default", part, axis) if collector.stacks else part
        ref = self.stacked[part.place]
        if ref.kind == "shared":
            raise NotALoop("the same value is collected at every step", collector.node)
        whole = ref.kind == "local" and ref in self.whole
        node, at = self.whole[ref] if ref in self.whole and ref not in self.timed else (self._all_steps(ref), 0)
        low = part.first if part.by > 0 else part.first - part.count + 1
        if (low, part.count) != (0, self.loop.steps):
            node = self.emit("aten.slice.Tensor", node, at, low, low + part.count, 1)
        if part.by < 0:
            node = self.emit("aten.flip.default", node, [at])
        if at != axis:
            node = self.emit("aten.movedim.int", node, at, axis)
        if not collector.stacks:
            node = self.emit("aten.flatten.using_ints", node, axis, axis + 1)
            return self.emit("aten.contiguous.default", node) if len(collector.parts) == 1 else node
        if len(collector.parts) > 1 or (whole and node is self.whole[ref][0]):
            return node
        # A tensor of its own, in the order in memory of the stack that it replaces.
        if ref.kind == "step":
            return self.emit("aten.clone.default", node, memory_format=torch.contiguous_format)
        return self.emit("aten.contiguous.default", node)


def _is_returned(node: Node) -> bool:
    """Whether the graph returns a value, or a view of it."""
    return any(
        user.op == "output"
        or (isinstance(user.target, torch._ops.OpOverload) and user.target.is_view and _is_returned(user))
        for user in node.users
    )
