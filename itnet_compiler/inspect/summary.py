"""What ``print(unified)`` shows: one screen, blocks in module order, equal ones once."""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import TYPE_CHECKING

from ..runtime.assembly import graphs
from .folding import Line, fold, lines
from .report import Report
from .text import counted, shorten, table

if TYPE_CHECKING:
    from ..runtime.program import Program

__all__ = ["summary"]

# Lines for the blocks; where they need more, the deepest ones are counted by layer instead.
_MOST_LINES = 30
_MOST_MISSES = 6
_NAME_WIDTH = 46
_WIDTH = 100


def summary(program: Program) -> str:
    """One line about the whole, the integrals by block, what was left alone, and where to look further."""
    if not program.variants and not graphs(program):
        why = [f"  original code runs: {text}" for text in program.fallbacks]
        when = "; it happens at the first call" if not why else ": it runs as it was"
        return "\n".join([f"{program.model_name}: nothing captured{when}", *why])
    report = Report(program)
    return "\n".join(
        [report.headline(), "", *_blocks(report), *_rest(report), *_misses(report), *_notes(report), "", _HINT]
    )


_HINT = 'more: .report()  .explain("path")  .ir  .integrals'


def _blocks(report: Report) -> list[str]:
    """The folded integrals; as deep as fits on a screen."""
    depth: int | None = None
    while True:
        shown = lines(fold(report.rows, depth))
        deepest = max((line.depth for line in shown), default=0)
        if len(shown) <= _MOST_LINES or deepest == 0:
            break
        depth = deepest - 1
    if not shown:
        return ["  no operator that an integral could stand for was found"]
    more = len(shown) - _MOST_LINES
    shown = shown[:_MOST_LINES]
    planned = any(row.lowering != "library" for row in report.rows)
    head = ("block", "", "layer", "integral over", "run by" if planned else "")
    cells = [head, *(_cells(line, planned) for line in shown)]
    room = _WIDTH - max(map(len, table(cells, indent="  "))) - 2
    kernels = ["kernel", *(_kernel(line, room) for line in shown)]
    rows = table(((*row, kernel) for row, kernel in zip(cells, kernels, strict=True)), indent="  ")
    return [*rows, f"  … and {more} more, see .report()"] if more > 0 else rows


def _cells(line: Line, planned: bool) -> tuple[str, ...]:
    label = shorten("  " * line.depth + line.label, _NAME_WIDTH)
    row = line.row
    if row is None:
        return label, line.times, shorten(line.kinds, _NAME_WIDTH), "", ""
    return label, line.times, row.origin, row.domain, row.lowering if planned else ""


def _kernel(line: Line, room: int) -> str:
    """The kernel with its structure, or where there is no room for that its family."""
    row = line.row
    if row is None:
        return ""
    if len(row.kernel) <= room:
        return row.kernel
    return f"{row.family}(max, …)" if row.reduction == "max" else f"{row.family}(…)"


def _rest(report: Report) -> list[str]:
    shown = ("pointwise", "normalisation", "re-indexing", "routing")
    categories = report.facts.categories
    return [
        "",
        f"  everything else: {counted((name, categories[name]) for name in shown if categories[name]) or 'nothing'}",
    ]


def _misses(report: Report) -> list[str]:
    """Unmatched operators, equal reasons together."""
    if not report.unmatched:
        return []
    groups = Counter((miss.operator, miss.reason) for miss in report.unmatched)
    first = {(miss.operator, miss.reason): miss for miss in reversed(report.unmatched)}
    shown = ["", "  left as they were:"]
    for (operator, reason), number in groups.most_common(_MOST_MISSES):
        miss = first[operator, reason]
        times = f"× {number}" if number > 1 else ""
        shown.append("    " + "  ".join(filter(None, (miss.name, times, operator, miss.source_line))))
        shown += textwrap.wrap(reason, _WIDTH, initial_indent=" " * 8, subsequent_indent=" " * 8)
    more = sum(groups.values()) - sum(number for _, number in groups.most_common(_MOST_MISSES))
    return [*shown, f"    … and {more} more, see .report()"] if more else shown


def _notes(report: Report) -> list[str]:
    notes = [note for note in report.notes() if not note.startswith("graphs: ")]
    wrapped = [textwrap.wrap(note, _WIDTH, initial_indent="  ", subsequent_indent="    ") for note in notes]
    return [line for note in wrapped for line in note]
