"""One captured and rewritten graph of a model, with what it is valid for."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import SymInt, Tensor, nn
from torch.fx import Graph

from ..capture.export import Capture
from ..capture.signature import Signature
from ..capture.written import write_back
from ..ir.integral import Integral
from ..passes.engine import integral_of
from ..passes.journal import Journal
from ..passes.loops.lengths import Spot
from .codegen import Generated
from .trial import Trial

__all__ = ["Variant"]


# A shortest and a longest length between which there is none.
_NONE = (0, -1)


@dataclass
class Variant:
    """One captured and rewritten graph, valid for one signature, mode and set of dtypes.

    Attributes:
        label: ``eval`` or ``train``, with ``(no grad)`` and the signature where there are several.
        signature: Of the calls that it serves.
        state: Of the module tree, as ``TreeState.read`` gave it.
        ambient: Autocast and what fast paths depend on (see ``FastPaths.read``) at capture.
        capture: Graph, guards, constants, output structure.
        journal: What each rule did.
        operators: How many were captured, before any rewrite.
        trial: Comparison with the original on the call that it was captured from; None if not made.
        seconds: Time taken by stage.
        refused: Why it is not run; empty where it is.
        own_code: Whether it runs other code than the original does, not operator for operator the same.
        alignment: How its graph relates to that of the first variant for the same signature; None for that itself.
        rolled: The graph with nothing but its loops re-rolled; None where it has none. Its nodes are never changed.
        tries: How often that has been held against the graph of another length.
        spots: Axes of inputs on which loops run, where the graph is for any length (see ``lengths``).
        trusted: Sizes that torch.export has not seen, and whether the graph computed the same as the original there.
        tried: The shortest and the longest length of loops known to be right: with gradients enabled, and at all.
    """

    label: str
    signature: Signature
    state: tuple[Any, ...]
    ambient: tuple[Any, ...]
    capture: Capture
    journal: Journal
    operators: int = 0
    trial: Trial | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    refused: str = ""
    own_code: bool = False
    alignment: str | None = None
    rolled: Graph | None = None
    spots: frozenset[Spot] = frozenset()
    tries: int = 0
    trusted: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    tried: tuple[tuple[int, int], tuple[int, int]] = (_NONE, _NONE)
    generated: Generated | None = None
    stores: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    @property
    def fast(self) -> tuple[bool, ...] | None:
        """What its fast paths depend on; None where it has none."""
        return self.ambient[-1]

    def fits(self, shapes: Sequence[torch.Size], root: nn.Module) -> bool:
        """Whether it serves inputs of these sizes, with what attributes that it writes are now."""
        return self.capture.guards.fit(shapes) and all(write.fits(root) for write in self.capture.writes)

    def run(self, root: nn.Module, leaves: list[Tensor]) -> Any:
        """Run its graph on the tensors of a call of ``root``, and write what that writes."""
        assert self.generated is not None
        result = self.generated.function(*[store[name] for store, name in self.stores], *leaves)
        if self.capture.writes:
            result, written = result
            write_back(root, self.capture.writes, written)
        return result

    def kind(self, leaves: Sequence[Tensor]) -> tuple[Any, ...]:
        """What a call has to be tried for before the graph is trusted with it; empty where there is nothing.

        Where it is for any length, all that Python code could branch on: every size, and whose gradients are wanted.
        """
        if self.spots:
            wanted = [tensor.requires_grad for tensor in (*leaves, *[store[name] for store, name in self.stores])]
            return torch.is_grad_enabled(), tuple(wanted), tuple([tuple(leaf.shape) for leaf in leaves])
        small = self.capture.guards.small([leaf.shape for leaf in leaves])
        return tuple([(spot, leaves[spot[0]].shape[spot[1]]) for spot in small])

    def convinced(self, trial: Trial | None) -> bool:
        """Whether a trial shows that the graph is right; for any length, its gradients too, which may be cut there."""
        return trial is not None and trial.equal and not (self.spots and trial.gradient_note)

    def trust(self, leaves: Sequence[Tensor], trial: Trial | None) -> bool:
        """Remember what a trial with these tensors showed: whether calls of this kind are run."""
        self.trusted[self.kind(leaves)] = right = self.convinced(trial)
        if self.spots:
            self.tried = self._tried(True), self._tried(False)
        return right

    def _tried(self, grad: bool) -> tuple[int, int]:
        index, axis = min(self.spots)
        lengths: dict[bool, list[int]] = {True: [], False: []}
        for (with_grad, _, shapes), right in self.trusted.items():
            if with_grad or not grad or not right:
                lengths[right].append(shapes[index][axis])
        captured = [] if self.journal.least is None else [self.journal.least]
        found = (min([*captured, *lengths[True]], default=0), max(lengths[True], default=-1))
        return _NONE if any(found[0] <= wrong <= found[1] for wrong in lengths[False]) else found

    def serves(self, signature: Signature, leaves: list[Tensor], fast: tuple[bool, ...] | None, asked: Any) -> bool:
        """Whether it may be run while something is traced, when nothing can be tried out, in the mode it is for.

        Loops have any length from that of its capture to the longest at which it was tried. ``asked`` are the answers
        to what forward asks of its surroundings; None where it asks nothing.
        """
        same = self.signature == signature and self.fast == fast and not (self.refused or self.capture.writes)
        if not same or (asked is not None and self.ambient[-2] != asked):
            return False
        shapes = [leaf.shape for leaf in leaves]
        symbolic = {
            (i, axis) for i, shape in enumerate(shapes) for axis, n in enumerate(shape) if isinstance(n, SymInt)
        }
        # Asking more about a symbolic size would make the tracer fix it.
        if not symbolic <= {*self.capture.guards.dynamic} or not self.capture.guards.fit(shapes):
            return False
        least, most = self.tried[0 if torch.is_grad_enabled() else 1]
        if not all(least <= shapes[index][axis] <= most for index, axis in self.spots):
            return False
        small = {spot: shapes[spot[0]][spot[1]] for spot in self.capture.guards.dynamic if spot not in symbolic}
        return self._has_seen({spot: size for spot, size in small.items() if size < 2})

    def _has_seen(self, small: dict[tuple[int, int], int]) -> bool:
        """Whether the graph was right in every trial with these sizes of 0 and 1, and there was one."""
        if not small:
            return True
        if not self.spots:
            return self.trusted.get(tuple(small.items()), False)
        grad = torch.is_grad_enabled()
        found = [
            right
            for (with_grad, _, shapes), right in self.trusted.items()
            if (with_grad or not grad or not right) and all(shapes[i][axis] == n for (i, axis), n in small.items())
        ]
        return bool(found) and all(found)

    @property
    def mode(self) -> str:
        """``train`` or ``eval``, that of the boundary itself."""
        return self.label.split()[0].removesuffix(":")

    @property
    def grad(self) -> bool:
        """Whether it was captured with gradients enabled. Without, it holds operators that have no derivative."""
        return self.capture.grad

    @property
    def graph(self) -> Graph:
        """The rewritten graph."""
        return self.capture.graph

    @property
    def integrals(self) -> list[Integral]:
        """Its integral nodes, in graph order."""
        return [integral for node in self.graph.nodes if (integral := integral_of(node)) is not None]

    def copy(self, integrals: dict[int, Integral]) -> Variant:
        """An independent variant: graph and integrals copied, tensors' fake values shared.

        ``integrals`` maps the id of an integral to its copy, for those that variants share.
        """
        graph = Graph()
        mapping: dict[Any, Any] = {}
        graph.output(graph.graph_copy(self.graph, mapping))
        for old, new in mapping.items():
            new.meta = dict(old.meta)
            if (integral := integral_of(new)) is not None:
                new.meta["integral"] = integrals.setdefault(id(integral), copy.copy(integral))
        twin = copy.copy(self)
        twin.capture, twin.journal = copy.copy(self.capture), copy.copy(self.journal)
        twin.capture.graph = graph
        twin.trusted, twin.generated, twin.stores = dict(self.trusted), None, []
        return twin
