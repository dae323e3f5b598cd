"""Lowering ``reference``: the family's dense definition itself. Slow; the oracle that all others are held against."""

from __future__ import annotations

import inspect
import textwrap

from ..ir.kernel import Spec
from .base import Lowered, Lowering, Support

__all__ = ["Reference"]


class Reference(Lowering):
    """Runs ``Kernel.evaluate``: plain torch, any floating dtype, memory proportional to the dense kernel."""

    name = "reference"

    def supports(self, spec: Spec) -> Support:
        return Support()

    def build(self, spec: Spec) -> Lowered:
        arguments = ", ".join(f"{role}={role}" for role in spec.operands)
        return Lowered(
            spec.operands,
            f"evaluate({arguments})",
            {"evaluate": spec.evaluate},
            text=textwrap.dedent(inspect.getsource(type(spec.kernel).evaluate)),
        )
