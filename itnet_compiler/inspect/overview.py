"""The facts about all graphs of a unified model together: of the one that is the whole, or of each part."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from typing import TYPE_CHECKING

from torch.fx import Node

from ..ir.kernel import Work
from ..ir.printer import print_graph
from ..passes.classify import Classification, coverage
from ..passes.journal import Entry, Journal
from ..runtime.assembly import graphs, left, share
from .facts import CATEGORIES, Facts, Miss, Row

if TYPE_CHECKING:
    from ..runtime.program import Program

__all__ = ["Left", "Overview", "ir"]


class Left:
    """A module whose original code runs, in no graph.

    Attributes:
        path: Of the module; empty for the model itself.
        kind: Class name.
        reasons: Why, in the current mode, with source lines.
    """

    def __init__(self, program: Program) -> None:
        self.path, self.kind = program.path, program.model_name
        other = "eval mode" if program.mode == "train" else "train mode"
        self.reasons = [reason for reason in program.fallbacks if not reason.startswith(other)]


class Overview:
    """Facts of every graph, added up.

    Attributes:
        graphs: Facts of each graph, in the order of the module tree.
        whole: Whether one graph is all of the model.
        left: Modules whose original code runs, with reasons.
    """

    def __init__(self, program: Program) -> None:
        self.whole, self.verified = program.whole, program.verified
        self.paths = [found.path for found in graphs(program)]
        self.graphs = [Facts(found) for found in graphs(program)]
        if not self.graphs and program.variants:  # a refused graph can be looked at
            self.graphs = [Facts(program)]
        self.left = [Left(found) for found in left(program)]
        self._program = program

    @cached_property
    def share(self) -> float:
        """Share of the parameters that are in graphs."""
        return share(self._program)

    @cached_property
    def operators(self) -> tuple[int, int]:
        """How many operators were captured, and how many nodes are left of them."""
        left = sum(node.op in ("call_function", "call_module") for facts in self.graphs for node in facts.graph.nodes)
        return sum(facts.variant.operators for facts in self.graphs), left

    @cached_property
    def classes(self) -> dict[Node, Classification]:
        """Category of every node."""
        return {node: found for facts in self.graphs for node, found in facts.classes.items()}

    @cached_property
    def coverage(self) -> float:
        """Mixing coverage of all graphs."""
        return coverage(self.classes)

    @cached_property
    def categories(self) -> dict[str, int]:
        """Nodes in each category."""
        return {name: sum(facts.categories[name] for facts in self.graphs) for name in CATEGORIES}

    @cached_property
    def families(self) -> Counter[str]:
        """Integrals by family."""
        return sum((facts.families for facts in self.graphs), Counter())

    @cached_property
    def rows(self) -> list[Row]:
        """One row for each integral."""
        return [row for facts in self.graphs for row in facts.rows]

    @cached_property
    def parameters(self) -> tuple[int, int]:
        """Elements of the parameters that integrals take, and of all others in graphs."""
        found = [facts.parameters for facts in self.graphs]
        return sum(inside for inside, _ in found), sum(outside for _, outside in found)

    @cached_property
    def worst(self) -> float | None:
        """Worst verification error."""
        return max((facts.worst for facts in self.graphs if facts.worst is not None), default=None)

    @cached_property
    def loops(self) -> list[tuple[Entry, Journal]]:
        """Loops that were re-rolled, each with the journal that says for which lengths."""
        journals = [facts.variant.journal for facts in self.graphs]
        return [(entry, journal) for journal in journals for entry in journal.loops()]

    @cached_property
    def near_misses(self) -> list[Entry]:
        """Of the rules tried at each node, the entry of the one that came furthest."""
        return [entry for facts in self.graphs for entry in facts.near_misses.values()]

    @cached_property
    def other_near_misses(self) -> list[Entry]:
        """Those at nodes that are no misses."""
        return [entry for facts in self.graphs for entry in facts.other_near_misses]

    @cached_property
    def misses(self) -> list[Miss]:
        """Every unmatched node with its reason."""
        return [miss for facts in self.graphs for miss in facts.misses]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Example sizes; of a model in parts none, since each part has names of its own."""
        return dict(self.graphs[0].printer.sizes.examples) if self.whole and self.graphs else {}

    def work(self, *categories: str) -> Work:
        """Cost of all nodes in ``categories`` at the sizes of the example."""
        return sum((facts.work(*categories) for facts in self.graphs), Work(0, 0))


def ir(program: Program) -> str:
    """The text form of the current graph, or of every part's."""
    found = graphs(program) or [program]
    return "\n".join(print_graph(each.graph, each.title) for each in found)
