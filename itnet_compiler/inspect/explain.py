"""``explain``: what happened at one place of the model, in full."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import textwrap
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.fx import Node

from ..errors import InputError
from ..ir.domain import Domain
from ..ir.integral import Integral
from ..ir.kernel import Kernel
from ..ir.naming import inside, is_hidden, module_path, operator_name, prefixes, source_line
from ..passes.classify import Category
from .facts import Facts, length_of
from .overview import Left, Overview
from .text import count, error, shorten, table, units

if TYPE_CHECKING:
    from ..runtime.program import Program

__all__ = ["equation", "explain"]

_WIDTH = 100
# More other operators than this are counted instead of listed.
_MOST_OPERATORS = 60


def explain(program: Program, path: str) -> str:
    """Integrals, other operators, refusals and source lines at a module path or node name.

    Args:
        program: The program behind a unified model.
        path: A module path (what is below it is included), the name of a node, or a glob over either.

    Raises:
        InputError: if there is nothing of that name; it lists the closest ones.
    """
    overview = Overview(program)
    found = [(facts, nodes) for facts in overview.graphs if (nodes := _nodes_at(facts, path))]
    left = [module for module in overview.left if inside(module.path, path) or path == "*"]
    if not found and not left:
        raise _unknown(overview, path)
    texts = [_explain(facts, nodes, path, program.model_name) for facts, nodes in found]
    if left:
        texts.append("\n".join(["stays Python:", *map(_stays, left)]))
    return "\n\n".join(texts)


def _stays(module: Left) -> str:
    where = f"{module.path} ({module.kind})" if module.path else f"the model ({module.kind})"
    return textwrap.fill(f"  {where}: {'; '.join(module.reasons)}", _WIDTH, subsequent_indent="    ")


def _nodes_at(facts: Facts, path: str) -> list[Node]:
    return [node for node in facts.graph.nodes if not is_hidden(node) and _is_at(facts, node, path)]


def _explain(facts: Facts, nodes: list[Node], path: str, model: str) -> str:
    integrals = [node for node in nodes if "integral" in node.meta]
    others = [node for node in nodes if "integral" not in node.meta]
    head = f"{path or model}: {count(len(integrals), 'integral')}, {count(len(others), 'other operator')}"
    parts = [head]
    for alike in _alike(facts, integrals):
        parts.append(_integral(facts, alike[0]))
        if len(alike) > 1:
            parts[-1] += f"\n\n  the same   {', '.join(facts.name(node) for node in alike[1:])}"
    parts += [text for text in (_loops(facts, path), _others(facts, others), _refusals(facts, nodes, path)) if text]
    return "\n\n".join(parts)


def equation(kernel: Kernel) -> list[str]:
    """The definition of a kernel in symbols: its own formula, or what its class writes down in its documentation."""
    if own := kernel.formula():
        return own
    documented = _plain(type(kernel).__doc__).split("Operands")[0].split("Attributes:")[0]
    formulas = [line for line in documented.splitlines() if line.startswith("    ")]
    if formulas:
        return _relevant(textwrap.dedent("\n".join(formulas)).splitlines(), kernel)
    summary = _plain(type(kernel).evaluate.__doc__).split("\n\n")[0]
    return textwrap.wrap(summary if "=" in summary else f"y = {summary}", _WIDTH - 6)


def _plain(documentation: str | None) -> str:
    return inspect.cleandoc(documentation or "").replace("``", "")


def _relevant(formulas: list[str], kernel: Kernel) -> list[str]:
    """Where formulas are labelled by the value of a field (``lstm``, ``gru``), those of this kernel."""
    values = {value for value in vars(kernel).values() if isinstance(value, str)}
    kept, keep = [], False
    for line in formulas:
        if not line.startswith(" "):
            keep = line.split(maxsplit=1)[0] in values
        if keep:
            kept.append(line)
    return kept or formulas


def _alike(facts: Facts, integrals: list[Node]) -> list[list[Node]]:
    """Integral nodes that differ in nothing but their names and weights, together."""
    groups: dict[Any, list[Node]] = {}
    for node in integrals:
        integral = node.meta["integral"]
        shapes = str([facts.printer.sizes.type(value.meta.get("val")) for value in node.all_input_nodes])
        groups.setdefault((integral.spec, integral.plan, integral.verification, shapes), []).append(node)
    return list(groups.values())


def _is_at(facts: Facts, node: Node, path: str) -> bool:
    names = {node.name, facts.name(node), _owner(node)}
    if any(mark in path for mark in "*?["):
        return any(fnmatch.fnmatchcase(name, path) for name in names)
    return path in names or inside(_owner(node), path)


def _owner(node: Node) -> str:
    integral = node.meta.get("integral")
    return module_path(node) if integral is None else integral.module_path


def _unknown(overview: Overview, path: str) -> InputError:
    shown = [(facts, node) for facts in overview.graphs for node in facts.graph.nodes if not is_hidden(node)]
    known = dict.fromkeys(name for facts, node in shown for name in (*prefixes(_owner(node)), facts.name(node)))
    close = difflib.get_close_matches(path, known, n=5, cutoff=0.5)
    # "conv1" is meant to find "layer1.0.conv1", which is not close letter by letter.
    close += [name for name in known if name.endswith("." + path) and name not in close][: 5 - len(close)]
    remedy = (
        f"did you mean {', '.join(close)}?" if close else "print(unified) lists the blocks; globs such as '*.attn' work"
    )
    return InputError(f"nothing in the model is called {path!r}", remedy=remedy)


# ---- one integral


def _integral(facts: Facts, node: Node) -> str:
    integral: Integral = node.meta["integral"]
    row = facts.row(node)
    title = f"── {row.name} "
    line = f" {row.source_line}" if row.source_line else ""
    facts_ = [
        ("layer", f"{row.origin}, as an integral of the {row.family} family"),
        ("over", row.domain),
        *_support(integral.domain),
        ("kernel", row.kernel),
        ("value", integral.kernel.value_map),
        ("reduction", row.reduction),
        ("properties", ", ".join(sorted(integral.kernel.properties(integral.domain))) or "none declared"),
        *_operands(facts, node),
        ("output", row.output),
        ("cost", f"{units(row.work.flops, 'FLOP')}, {units(row.work.bytes, 'B')} moved{_at(facts)}"),
        ("verified" if row.verification == "verified" else "check", _verification(integral)),
        ("plan", f"{row.lowering}, {'exact' if row.exact else 'approximate'}{_because(integral.plan.note)}"),
    ]
    lines = [title.ljust(_WIDTH - len(line), "─") + line]
    lines += [f"      {text}" for text in equation(integral.kernel)] + [""]
    lines += table(facts_, indent="  ")
    lines += ["", "  source", *textwrap.indent(integral.source().rstrip(), "      ").splitlines()]
    return "\n".join(lines)


def _support(domain: Domain) -> list[tuple[str, str]]:
    """The positions of a domain as a formula, where its class documents one."""
    documented = _plain(type(domain).__doc__).split("\n\n")[0].replace("\n", " ")
    return [("", documented)] if " = " in documented else []


def _operands(facts: Facts, node: Node) -> list[tuple[str, str]]:
    given: list[str] = []
    for role, value in node.kwargs.items():
        if isinstance(value, (list, tuple)) and any(isinstance(item, Node) for item in value):
            given += [f"{role}[{index}]: {_operand(facts, node, item)}" for index, item in enumerate(value)]
        else:
            given.append(f"{role}: {_operand(facts, node, value)}")
    return [("" if index else "operands", text) for index, text in enumerate(given)]


def _operand(facts: Facts, node: Node, value: Any) -> str:
    text = facts.printer.argument(value, facts.printer.naming.block[node])
    known = isinstance(value, Node) and isinstance(value.meta.get("val"), Tensor)
    return f"{text} {facts.printer.sizes.type(value.meta['val'])}" if known else text


def _at(facts: Facts) -> str:
    sizes = ", ".join(f"{name}={size}" for name, size in facts.printer.sizes.examples.items())
    return f" at {sizes}" if sizes else ""


def _verification(integral: Integral) -> str:
    checked = integral.verification
    if checked.status == "skipped":
        return f"not checked{_because(checked.note)}"
    parts = [
        f"{name} {error(value)}"
        for name, value in (
            ("the replaced operators", checked.region_error),
            ("at other sizes", checked.resized_error),
            ("the dense definition", checked.definition_error),
        )
        if value is not None
    ]
    return f"{error(checked.error)} worst relative error ({', '.join(parts)}){_because(checked.note)}"


def _because(note: str) -> str:
    return f"; {note}" if note else ""


# ---- everything else


def _others(facts: Facts, nodes: list[Node]) -> str:
    if not nodes:
        return ""
    cells = []
    for node in nodes:
        found = facts.classes[node]
        reason = facts.miss(node).reason if found.category is Category.UNMATCHED else found.reason
        cells.append(
            (shorten(facts.name(node), 44), operator_name(node), str(found.category), reason, source_line(node) or "")
        )
    lines = table(cells[:_MOST_OPERATORS], indent="  ")
    more = len(cells) - _MOST_OPERATORS
    return "\n".join(["other operators", *lines, *([f"  … and {more} more (see .ir)"] if more > 0 else [])])


def _loops(facts: Facts, path: str) -> str:
    found = [loop for loop in facts.variant.journal.loops() if inside(loop.module_path, path) or path == loop.integral]
    cells = [(loop.source_line or "", length_of(loop, facts.variant.journal)) for loop in found]
    return "\n".join(["loops", *table(cells, indent="  ")]) if cells else ""


def _refusals(facts: Facts, nodes: list[Node], path: str) -> str:
    names = {node.name for node in nodes}
    found = [e for e in facts.near_misses.values() if e.anchor in names or (path and inside(e.module_path, path))]
    cells = [(e.rule, e.status, e.anchor, e.reason or "", e.source_line or "") for e in found]
    return "\n".join(["rules that were tried and did not apply", *table(cells, indent="  ")]) if cells else ""
