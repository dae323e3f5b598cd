"""The rewritten graph as a ``networkx.DiGraph``, for one's own analyses and drawings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch.fx import Node

from ..errors import ItnetError
from ..ir.naming import is_hidden, module_path, operator_name, source_line
from .facts import Facts
from .overview import Overview

if TYPE_CHECKING:
    import networkx

    from ..runtime.program import Program

__all__ = ["to_networkx"]


def to_networkx(program: Program) -> networkx.DiGraph:
    """A node for each line of the IR, input and output; an edge wherever one's value goes into another.

    Node attributes (plain strings): ``kind`` (input, output, integral, or the category of an operator), ``operator``,
    ``path``, ``shape``, ``source_line``; for integrals also ``family``, ``origin``, ``domain``, ``kernel``. Graph
    attribute: ``model``. Parameters are not nodes, and support nodes are passed through. A model in parts gives one
    component for each, whose inputs and outputs bear its path.

    Raises:
        ItnetError: if networkx is not installed.
    """
    try:
        import networkx
    except ImportError as missing:
        raise ItnetError("networkx is not installed", remedy="pip install networkx") from missing
    overview = Overview(program)
    graph = networkx.DiGraph(model=program.model_name)
    for part, facts in zip(overview.paths or [""], overview.graphs, strict=True):
        for node in facts.graph.nodes:
            if node.op in ("placeholder", "output") or not is_hidden(node):
                graph.add_node(_key(facts, node, part), **_attributes(facts, node))
                graph.add_edges_from((_key(facts, source, part), _key(facts, node, part)) for source in _sources(node))
    return graph


def _key(facts: Facts, node: Node, part: str) -> str:
    """Name of the node; inputs and outputs of a part under its path."""
    if node.op not in ("placeholder", "output"):
        return facts.name(node)
    return f"{part}.{'output' if node.op == 'output' else facts.name(node)}".lstrip(".")


def _sources(node: Node) -> list[Node]:
    """Shown nodes whose values reach ``node``, directly or through hidden ones."""
    found: dict[Node, None] = {}
    waiting = list(reversed(node.all_input_nodes))
    seen: set[Node] = set()
    while waiting:
        source = waiting.pop()
        if source in seen:
            continue
        seen.add(source)
        if source.op == "placeholder" or not is_hidden(source):
            found[source] = None
        else:
            waiting += reversed(source.all_input_nodes)
    return list(found)


def _attributes(facts: Facts, node: Node) -> dict[str, Any]:
    shape = facts.printer.sizes.type(node.meta.get("val"))
    if node.op in ("placeholder", "output"):
        kind = "input" if node.op == "placeholder" else "output"
        return {"kind": kind, "operator": kind, "path": "", "shape": shape, "source_line": ""}
    shared = {"operator": operator_name(node), "shape": shape, "source_line": source_line(node) or ""}
    if "integral" not in node.meta:
        return {"kind": str(facts.classes[node].category), "path": module_path(node), **shared}
    integral = node.meta["integral"]
    described = {"domain": integral.domain.describe(), "kernel": integral.kernel.describe()}
    return {"kind": "integral", "path": integral.module_path, "family": integral.family, "origin": integral.origin} | (
        shared | described
    )
