"""Library lowering of ``Cumulative``: ``cumsum``."""

from __future__ import annotations

import torch

from ...ir.cumulative import Cumulative
from ...ir.kernel import Spec
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Cumulative


def lower(spec: Spec) -> Lowered:
    """The operator that the source calls."""
    kernel = spec.kernel
    assert isinstance(kernel, Cumulative)
    return Lowered(spec.operands, f"cumsum(input, {kernel.axis})", {"cumsum": torch._C._VariableFunctions.cumsum})
