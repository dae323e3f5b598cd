"""The report: what was made of each block, what it costs, how it was checked, and what was left alone and why."""

from __future__ import annotations

import html
from collections.abc import Iterable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..ir.kernel import Work
from .facts import CATEGORIES, Miss, Row, length_of
from .overview import Overview
from .text import count, counted, error, shorten, table, units

if TYPE_CHECKING:
    from rich.console import Group

    from ..runtime.program import Program

__all__ = ["Report"]

COLUMNS = ("integral", "origin", "family", "over", "error", "params", "FLOPs", "bytes", "plan")
_RIGHT = (4, 5, 6, 7)
_OTHERS = tuple(category for category in CATEGORIES if category != "integral")


class Report:
    """Everything there is to know about a unified model; ``print`` it, or take ``to_dict()`` for a machine.

    Attributes:
        facts: The same facts as Python objects: rows, categories, misses.
        model: Class name of the model.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.model = program.model_name
        self.facts = Overview(program)

    @property
    def rows(self) -> list[Row]:
        """One row for each integral, in the order in which they run."""
        return self.facts.rows

    @property
    def unmatched(self) -> list[Miss]:
        """Position-mixing (or unknown) operators left as they were, with reasons."""
        return self.facts.misses

    @property
    def coverage(self) -> float:
        """Mixing coverage, 0 … 1."""
        return self.facts.coverage

    @cached_property
    def totals(self) -> dict[str, Work]:
        """Cost of the integrals and of everything else, at the sizes of the example."""
        return {"integrals": self.facts.work("integral"), "everything else": self.facts.work(*_OTHERS)}

    def headline(self) -> str:
        """One line: how many integrals of which family, coverage, verification."""
        facts = self.facts
        number = count(sum(facts.families.values()), "integral")
        kinds = counted(facts.families.most_common())
        where = (
            "" if facts.whole else f" in {count(len(facts.paths), 'part')} ({percent(facts.share)} of the parameters)"
        )
        return (
            f"{self.model}: {number} ({kinds or 'none'}){where} · mixing coverage {percent(self.coverage)}"
            f" · {self.checked()}"
        )

    def checked(self) -> str:
        """``verified, worst error 2e-16``, or why not."""
        if not self.facts.verified:
            return "not verified (verify=False)"
        if not self.facts.families:
            return "nothing to verify"
        return f"verified, worst error {error(self.facts.worst)}"

    def notes(self) -> list[str]:
        """Comparison with the original, variants, calls that run the original code."""
        program = self._program
        captured, left = self.facts.operators
        lines = [f"{captured:,} operators captured, {left:,} left"] if captured > 4 * left else []
        lines += [f"compared with the original: {program.comparison}"] if program.comparison else []
        if program.variants:
            labels = [v.label + (f" ({v.alignment})" if v.alignment else "") for v in program.variants]
            lines.append(f"graphs: {', '.join(labels)}")
        lines += dict.fromkeys(
            f"loop at {loop.source_line or loop.module_path or '?'}: {length_of(loop, journal)}"
            for loop, journal in self.facts.loops
        )
        if self.facts.whole:
            return lines + [f"original code runs: {text}" for text in program.fallbacks]
        parts = shorten(", ".join(self.facts.paths), 200) or "none"
        return [*lines, f"captured parts: {parts}", *self.left()]

    def left(self) -> list[str]:
        """The modules that run their original code, equal reasons together."""
        groups: dict[tuple[str, ...], list[str]] = {}
        for module in self.facts.left:
            groups.setdefault(tuple(module.reasons), []).append(f"{module.path or 'the model'} ({module.kind})")
        lines = []
        for reasons, modules in groups.items():
            why = "; ".join(reasons) or "not called yet, or around parts with boundaries of their own"
            lines.append(f"stays Python: {shorten(', '.join(modules), 120)}: {why}")
        return lines

    def sizes(self) -> str:
        """``N=2, L=128``: the example sizes at which costs are given."""
        return ", ".join(f"{name}={size}" for name, size in self.facts.sizes.items())

    # ---- forms

    def __str__(self) -> str:
        cells = [COLUMNS, *map(_cells, self.rows)]
        if self.rows:
            cells += [_total(name, work, self._parameters(name)) for name, work in self.totals.items()]
        return "\n".join([self.headline(), "", *table(cells, right=_RIGHT), *self._sections()])

    def __repr__(self) -> str:
        return f"<Report {self.headline()}>"

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        shown = Table(box=None, pad_edge=False, header_style="bold", show_footer=False)
        for index, column in enumerate(COLUMNS):
            flush = "right" if index in _RIGHT else "left"
            shown.add_column(column, justify=flush, overflow="fold", no_wrap=index in _RIGHT)  # type: ignore[arg-type]
        for row in self.rows:
            shown.add_row(*map(Text, _cells(row)))
        shown.add_section()
        for name, work in self.totals.items():
            shown.add_row(*map(Text, _total(name, work, self._parameters(name))), style="bold")
        return Group(Text(self.headline(), style="bold"), Text(), shown, Text("\n".join(self._sections())))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-serialisable values."""
        facts = self.facts
        return {
            "model": self.model,
            "families": dict(facts.families),
            "coverage": self.coverage,
            "verified": facts.verified,
            "worst_error": facts.worst,
            "comparison": self._program.comparison,
            "example_sizes": facts.sizes,
            "categories": dict(facts.categories),
            "operators": dict(zip(("captured", "left"), facts.operators, strict=True)),
            "totals": {name: {"flops": work.flops, "bytes": work.bytes} for name, work in self.totals.items()},
            "integrals": [row.to_dict() for row in self.rows],
            "unmatched": [vars(miss) for miss in self.unmatched],
            "loops": [
                {
                    "steps": loop.steps,
                    "least": journal.least,
                    "module_path": loop.module_path,
                    "source_line": loop.source_line,
                }
                for loop, journal in facts.loops
            ],
            "near_misses": [_entry(entry) for entry in facts.near_misses],
            "variants": [variant.label for variant in self._program.variants],
            "fallbacks": list(self._program.fallbacks),
            "whole": facts.whole,
            "parts": [] if facts.whole else facts.paths,
            "captured_parameters": facts.share,
            "left": [{"path": module.path, "class": module.kind, "reasons": module.reasons} for module in facts.left],
        }

    def _repr_html_(self) -> str:
        def line(cells: Iterable[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(line(_cells(row), "td") for row in self.rows)
        sums = "".join(line(_total(name, work, self._parameters(name)), "th") for name, work in self.totals.items())
        rest = html.escape("\n".join(self._sections()).strip("\n"))
        return (
            f"<p><b>{html.escape(self.headline())}</b></p>"
            f"<table><thead>{line(COLUMNS, 'th')}</thead><tbody>{body}{sums}</tbody></table><pre>{rest}</pre>"
        )

    def _parameters(self, name: str) -> str:
        return units(self.facts.parameters[name != "integrals"])

    def _sections(self) -> list[str]:
        facts = self.facts
        lines = [f"costs at the example's sizes {self.sizes()}" if self.sizes() else "", ""]
        lines.append("nodes: " + counted((name, number) for name, number in facts.categories.items() if number))
        lines += self.notes()
        lines += self._odd_checks()
        if self.unmatched:
            lines += ["", "left as they were:", *table(map(miss_cells, self.unmatched), indent="  ")]
        others = facts.other_near_misses
        if others:
            lines += ["", "rules that said no elsewhere:"]
            cells = (
                (entry.anchor, entry.module_path, entry.source_line or "", f"{entry.rule}: {entry.reason}")
                for entry in others
            )
            lines += table(cells, indent="  ")
        return lines

    def _odd_checks(self) -> list[str]:
        """Integrals whose check was not the full one, by what was different."""
        names: dict[str, list[str]] = {}
        for row in self.rows:
            if row.note and row.verification == "verified":
                names.setdefault(row.note, []).append(row.name)
        cells = [(note, shorten(", ".join(found), 80)) for note, found in names.items()]
        return ["", "checked in part:", *table(cells, indent="  ")] if cells else []


def percent(share: float) -> str:
    """``100 %`` only where nothing is missing."""
    return "100 %" if share == 1 else f"{min(share * 100, 99.9):.3g} %"


def miss_cells(miss: Miss) -> tuple[str, str, str, str]:
    """Name, operator, source line and reason."""
    return miss.name, miss.operator, miss.source_line or "", miss.reason


def _cells(row: Row) -> tuple[str, ...]:
    plan = row.lowering if row.exact else f"{row.lowering} (approximate)"
    status = error(row.error) if row.verification == "verified" else row.verification
    work = (units(row.work.flops), units(row.work.bytes, "B"))
    parameters = units(row.parameters) if row.parameters else ""
    return shorten(row.name, 44), row.origin, row.family, row.domain, status, parameters, *work, plan


def _total(name: str, work: Work, parameters: str) -> tuple[str, ...]:
    return f"total {name}", "", "", "", "", parameters, units(work.flops), units(work.bytes, "B"), ""


def _entry(entry: Any) -> dict[str, Any]:
    names = ("status", "rule", "anchor", "reason", "depth", "error", "module_path", "source_line")
    return {name: getattr(entry, name) for name in names}
