"""Holding a new graph against the original, and what is run otherwise where it rounds worse than the original does."""

from __future__ import annotations

import glob
from typing import TYPE_CHECKING

from ..capture.signature import Call
from ..lowering.planner import PlanRule, apply_plan
from ..lowering.products import Products, is_fused
from .build import bind
from .trial import Trial
from .variant import Variant

if TYPE_CHECKING:
    from .program import Program

__all__ = ["compare"]

_WHY = "the fused operator loses digits here, against a run in float64"


def compare(program: Program, variant: Variant, call: Call) -> str:
    """Run a new variant and the original on ``call``; how they differ, empty where they compute the same.

    Attention that was written out is run as it was written, here and in later variants of the program, where the fused
    operator makes the error against a run in float64 larger than promised and the written products do not.
    """
    fused = [integral for integral in variant.integrals if is_fused(integral)]
    variant.trial = program.try_out(variant, call, gradients=True, strict=bool(fused))
    if variant.trial is None:
        return "could not be run"
    if variant.trial.faithful is False and fused:
        rules = [PlanRule(glob.escape(one.name), Products.name, _WHY, required=False) for one in fused]
        better = _with(program, variant, call, rules)
        if better is not None:
            variant.trial, program.careful = better, [*program.careful, *rules]
    return "" if variant.trial.equal else variant.trial.describe()


def _with(program: Program, variant: Variant, call: Call, rules: list[PlanRule]) -> Trial | None:
    """The trial of a variant that is run by these rules; None where it is no better, and then they are undone."""
    _run_by(program, variant, [*program.careful, *rules])
    trial = program.try_out(variant, call, gradients=True, strict=True)
    if trial is not None and trial.equal and trial.faithful is not False:
        return trial
    _run_by(program, variant, program.careful)
    return None


def _run_by(program: Program, variant: Variant, careful: list[PlanRule]) -> None:
    apply_plan(variant.integrals, [*careful, *program.plan_rules])
    bind(program, variant)
