"""Where the fused attention operator loses digits of gradients that products and a softmax keep, the latter run.

Its backward takes the sum of output times gradient off each gradient of a score. Where keys or values have a large part
in common, what is left is small, and so are the digits. It shows when a graph is compared with the original.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from ..ir.attention import Attention
from ..ir.integral import Integral, Plan
from ..lowering.base import default_lowering
from ..lowering.library.attention import fused_form
from .build import bind
from .trial import gradient_errors
from .variant import Variant

if TYPE_CHECKING:
    from ..capture.signature import Call
    from .program import Program

__all__ = ["keep_digits"]

# Differences of float32 gradients up to this are those of another order of sums: not worth a run in float64.
_SUSPICIOUS = 5e-6
# Promise 1: twice the original's own error, and this.
_SLACK = 1e-6
_NOTE = "written out: gradients of the fused operator lose digits here"


def keep_digits(program: Program, variant: Variant, call: Call) -> None:
    """Write attentions of a new variant out again, where its gradients are much farther from the truth than need be.

    A run of the original in float64 decides, which is made only where the comparison in float32 has found gradients to
    differ more than by rounding, and where some attention that the source writes out has been fused.
    """
    trial = variant.trial
    if trial is None or trial.written or trial.gradient_error is None or trial.gradient_error <= _SUSPICIOUS:
        return
    fused = [integral for integral in variant.integrals if _is_fused(integral)]
    if not fused or not all(p.dtype in (torch.float32, torch.float64) for p in program.root.parameters()):
        return

    if trial.equal and not _loses(program, variant, call):
        return
    before = [(integral, integral.spec, integral.executable, integral.plan) for integral in fused]
    for integral in fused:
        _write_out(integral)
    bind(program, variant)
    again = program.try_out(variant, call, gradients=True)
    if again is None or not again.equal or not (again.gradient_error or 0.0) < trial.gradient_error / 2:
        for integral, spec, executable, plan in before:
            integral.spec, integral.executable, integral.plan = spec, executable, plan
        bind(program, variant)
        return
    variant.trial = again


def _loses(program: Program, variant: Variant, call: Call) -> bool:
    """Whether the gradients of the graph are farther from those in float64 than the promise allows."""

    def graph(*args: Any, **kwargs: Any) -> Any:
        return program.run(variant, program.reader.read(args, kwargs).leaves)

    errors = gradient_errors(program.root, program._code, (program.plain, graph), call.args, call.kwargs)
    return errors is not None and errors[1] > 2 * errors[0] + _SLACK


def _is_fused(integral: Integral) -> bool:
    kernel = integral.spec.kernel
    return isinstance(kernel, Attention) and integral.plan.lowering == "library" and not _reason(kernel)


def _reason(kernel: Attention) -> str:
    form = fused_form(kernel)
    return form if isinstance(form, str) else ""


def _write_out(integral: Integral) -> None:
    kernel = integral.spec.kernel
    assert isinstance(kernel, Attention)
    integral.spec = dataclasses.replace(integral.spec, kernel=dataclasses.replace(kernel, unfused=True))
    lowering = default_lowering(integral.spec)
    integral.executable, integral.plan = lowering.build(integral.spec), Plan(lowering.name, note=_NOTE)
