"""Plans: which lowering runs each integral. Each node's default unless a rule says otherwise."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..errors import LoweringError
from ..ir.integral import Integral, Plan
from .base import default_lowering, find_lowering

__all__ = ["PlanRule", "apply_plan"]


@dataclass(frozen=True)
class PlanRule:
    """Integrals whose name matches ``pattern`` (a glob) are run by ``lowering``; later rules win.

    Attributes:
        pattern: Glob over names.
        lowering: Name of the lowering.
        note: Why, for the plan of the node.
        required: Whether an integral that cannot be run so is an error; otherwise the rule is not for it.
        tolerance: Of a lowering that takes one; None is its own.
    """

    pattern: str
    lowering: str
    note: str = ""
    required: bool = True
    tolerance: float | None = None

    def concerns(self, integral: Integral) -> bool:
        """Whether it is for this integral."""
        if not fnmatch.fnmatchcase(integral.name, self.pattern):
            return False
        return self.required or find_lowering(self.lowering).supports(integral.spec).ok


def apply_plan(integrals: Iterable[Integral], rules: Sequence[PlanRule]) -> None:
    """Set plan and executable of each integral, in place.

    Raises:
        LoweringError: where a chosen lowering does not support a node, with every reason.
    """
    planned = []
    for integral in integrals:
        chosen, note, tolerance = default_lowering(integral.spec).name, "", None
        for rule in rules:
            if rule.concerns(integral):
                chosen, note, tolerance = rule.lowering, rule.note, rule.tolerance
        if (chosen, tolerance) == (integral.plan.lowering, integral.plan.tolerance):
            continue
        lowering = find_lowering(chosen) if tolerance is None else find_lowering(chosen).within(tolerance)
        support = lowering.supports(integral.spec)
        if not support.ok:
            raise LoweringError(
                f"lowering {chosen!r} does not support {integral.name}: {'; '.join(support.reasons)}",
                remedy="name other integrals with only=, or another method",
                node=integral.name,
                source_line=integral.source_line,
            )
        planned.append(
            (integral, lowering.build(integral.spec), Plan(chosen, lowering.exact, note or lowering.error, tolerance))
        )
    for integral, executable, plan in planned:
        integral.executable, integral.plan = executable, plan
