"""One captured and rewritten graph of a model, with what it is valid for."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Graph

from ..capture.export import Capture
from ..capture.signature import Signature
from ..ir.integral import Integral
from ..passes.engine import integral_of
from ..passes.journal import Journal
from .codegen import Generated
from .trial import Trial

__all__ = ["Variant"]


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
        own_code: Whether it runs other code for an integral than the library's, as the original does.
        alignment: How its graph relates to that of the first variant for the same signature; None for that itself.
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
    trusted: dict[tuple[Any, ...], bool] = field(default_factory=dict)
    generated: Generated | None = None
    stores: list[tuple[dict[str, Any], str]] = field(default_factory=list)

    @property
    def fast(self) -> tuple[bool, ...] | None:
        """What its fast paths depend on; None where it has none."""
        return self.ambient[-1]

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
        twin.capture = copy.copy(self.capture)
        twin.capture.graph = graph
        twin.trusted, twin.generated, twin.stores = dict(self.trusted), None, []
        return twin
