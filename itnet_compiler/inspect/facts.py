"""What there is to say about one captured variant: rows for the integrals, categories, misses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node

from ..ir.kernel import Work
from ..ir.naming import is_hidden, module_path, source_line
from ..ir.printer import Printer
from ..passes.classify import Category, Classification, classify, coverage
from ..passes.journal import Entry, Journal
from ..passes.work import concrete, node_work

if TYPE_CHECKING:
    from ..ir.integral import Integral
    from ..runtime.program import Program
    from ..runtime.variant import Variant

__all__ = ["Facts", "Miss", "Row", "length_of"]

CATEGORIES = tuple(str(category) for category in Category if category is not Category.SUPPORT)


@dataclass(frozen=True)
class Row:
    """One integral.

    Attributes:
        name: Unique in the graph: module path, ``#2`` for a second one of the same module.
        module_path: Module that it came from.
        source_line: ``file.py:12`` in the user's code.
        origin: The layer in everyday words.
        family: Kernel family.
        domain: Text after ``over`` in the IR.
        kernel: Text after ``kernel`` in the IR; ``depthwise`` where every channel is its own group.
        reduction: ``sum`` or ``max``.
        output: Type of the result.
        verification: ``verified``, ``skipped`` or ``failed``.
        error: Worst relative error of the checks.
        note: What was different from the full check.
        parameters: Elements of the parameters and buffers among the operands.
        work: Cost at the sizes of the example.
        lowering: What runs it.
        exact: Whether that computes the definition up to rounding.
    """

    name: str
    module_path: str
    source_line: str | None
    origin: str
    family: str
    domain: str
    kernel: str
    reduction: str
    output: str
    verification: str
    error: float | None
    note: str
    parameters: int
    work: Work = field(repr=False)
    lowering: str
    exact: bool

    @property
    def where(self) -> str:
        """Module path and source line, for messages."""
        return " ".join(filter(None, (self.module_path, self.source_line)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values only."""
        plain = asdict(self)
        work = plain.pop("work")
        return plain | {"flops": work["flops"], "bytes": work["bytes"]}


@dataclass(frozen=True)
class Miss:
    """A node that stayed as it was although it moves information between positions, or may do so.

    Attributes:
        name: Name of the node in the IR.
        operator: The operator that it calls.
        reason: Why it is not an integral: the rule that came nearest, or why no rule tried.
        module_path: Module that it came from.
        source_line: ``file.py:12`` in the user's code.
    """

    name: str
    operator: str
    reason: str
    module_path: str
    source_line: str | None


class Facts:
    """Facts about the current variant of a program, each computed when first asked for."""

    def __init__(self, program: Program, variant: Variant | None = None) -> None:
        self.variant = program.current if variant is None else variant
        self.graph = self.variant.graph
        self.verified = program.verified

    @cached_property
    def printer(self) -> Printer:
        return Printer(self.graph)

    @cached_property
    def classes(self) -> Mapping[Node, Classification]:
        """Category of every node."""
        return classify(self.graph)

    @cached_property
    def coverage(self) -> float:
        """Mixing coverage: integrals / (integrals + position-mixing operators left alone)."""
        return coverage(self.classes)

    @cached_property
    def categories(self) -> dict[str, int]:
        """Nodes in each category, support nodes left out."""
        found = Counter(str(entry.category) for entry in self.classes.values())
        return {category: found[category] for category in CATEGORIES}

    @cached_property
    def families(self) -> Counter[str]:
        """Integrals by family."""
        return Counter(integral.family for _, integral in self.integrals())

    def integrals(self) -> Iterator[tuple[Node, Integral]]:
        """Integral nodes, in graph order."""
        for node in self.graph.nodes:
            if "integral" in node.meta:
                yield node, node.meta["integral"]

    @cached_property
    def rows(self) -> list[Row]:
        """One row for each integral, in graph order."""
        return [self.row(node) for node, _ in self.integrals()]

    def row(self, node: Node) -> Row:
        """The row of one integral node."""
        integral: Integral = node.meta["integral"]
        checked = integral.verification
        return Row(
            integral.name,
            integral.module_path,
            integral.source_line,
            integral.origin,
            integral.family,
            integral.domain.describe(),
            _kernel_text(node),
            integral.kernel.reduction,
            self.printer.sizes.type(node.meta.get("val")),
            checked.status,
            checked.error,
            checked.note,
            sum(_owned(node).values()),
            self.cost(node),
            integral.plan.lowering,
            integral.plan.exact,
        )

    @cached_property
    def parameters(self) -> tuple[int, int]:
        """Elements of the parameters and buffers that integrals take, and of all others."""
        taken = {path: size for node, _ in self.integrals() for path, size in _owned(node).items()}
        all_of_them = {path: size for node in self.graph.nodes for path, size in _owned(node).items()}
        return sum(taken.values()), sum(all_of_them.values()) - sum(taken.values())

    @cached_property
    def worst(self) -> float | None:
        """Worst verification error of all integrals."""
        errors = [integral.verification.error for _, integral in self.integrals()]
        return max((error for error in errors if error is not None), default=None)

    @cached_property
    def near_misses(self) -> dict[str, Entry]:
        """Anchor node → the entry of the rule that came furthest there."""
        return self.variant.journal.near_misses()

    @cached_property
    def other_near_misses(self) -> list[Entry]:
        """Near misses at nodes that are no misses."""
        unmatched = {node.name for node, found in self.classes.items() if found.category is Category.UNMATCHED}
        return [entry for entry in self.near_misses.values() if entry.anchor not in unmatched]

    @cached_property
    def misses(self) -> list[Miss]:
        """Every unmatched node with its reason."""
        return [self.miss(node) for node, found in self.classes.items() if found.category is Category.UNMATCHED]

    def miss(self, node: Node) -> Miss:
        """Why one node is not an integral."""
        nearest, line = self._reasons.get(node.name), source_line(node)
        reason = self.classes[node].reason
        if nearest is not None:
            elsewhere = f" [{nearest.source_line}]" if nearest.source_line not in (None, line) else ""
            reason = f"{nearest.rule}: {nearest.reason}{elsewhere}"
        return Miss(self.name(node), _operator(node), reason, module_path(node), line)

    @cached_property
    def _reasons(self) -> dict[str, Entry]:
        return self.variant.journal.reasons()

    def name(self, node: Node) -> str:
        """Full name of a node in the IR."""
        return self.printer.naming.name.get(node, node.name)

    def work(self, *categories: str) -> Work:
        """Cost of all nodes in ``categories`` at the sizes of the example."""
        total = Work(0, 0)
        for node, found in self.classes.items():
            if str(found.category) in categories and not (is_hidden(node) and "integral" not in node.meta):
                total = total + self.cost(node)
        return total

    def cost(self, node: Node) -> Work:
        """Cost of one node at the sizes of the example."""
        if "integral" not in node.meta:
            return node_work(node)
        integral: Integral = node.meta["integral"]
        operands = {role: _stand_in(value) for role, value in node.kwargs.items()}
        outputs = _stand_in(node.meta["val"])
        return integral.kernel.work(integral.domain, operands, outputs if isinstance(outputs, tuple) else (outputs,))


def length_of(loop: Entry, journal: Journal) -> str:
    """What a re-rolled loop means for calls of another length."""
    if journal.least is not None:
        return f"any length from {journal.least} on; the first call of each is compared with the original"
    why = f": {journal.fixed}" if journal.fixed else "; another length is captured when it comes"
    return f"length fixed at {loop.steps} steps{why}"


def _stand_in(value: Any) -> Any:
    """Tensors without storage, at the sizes of the example, in place of nodes and recorded values."""
    if isinstance(value, Node):
        return _stand_in(value.meta.get("val"))
    if isinstance(value, (list, tuple)):
        return type(value)(_stand_in(item) for item in value)
    if isinstance(value, Tensor):
        return torch.empty(concrete(value.shape), dtype=value.dtype, device="meta")
    return concrete((value,))[0] if isinstance(value, torch.SymInt) else value


def _operator(node: Node) -> str:
    return str(node.target).removeprefix("aten.").removesuffix(".default")


def _owned(node: Node) -> dict[str, int]:
    """Path → elements of the parameters and buffers that a node takes."""
    inputs = [n for n in node.all_input_nodes if n.op == "get_attr" and isinstance(n.meta.get("val"), Tensor)]
    return {str(n.target): n.meta["val"].numel() for n in inputs}


def _kernel_text(node: Node) -> str:
    """As in the IR, with groups of one channel, whose number is that of the channels, called depthwise."""
    integral = node.meta["integral"]
    text: str = integral.kernel.describe()
    weight = node.kwargs.get("weight")
    groups = getattr(integral.kernel, "groups", 1)
    if groups > 1 and isinstance(weight, Node) and weight.meta["val"].shape[1] == 1:
        return text.replace(f"groups={groups}", "depthwise")
    return text
