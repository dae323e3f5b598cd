"""Library lowering of ``gated``: PyTorch's recurrent operators (cuDNN, oneDNN or ATen behind them)."""

from __future__ import annotations

import torch

from ...ir.domain import Past
from ...ir.gated import Gated
from ...ir.kernel import Spec
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Gated

# Not torch._VF, whose attributes a capture replaces for a while (see capture/leaves.py).
_functions = torch._C._VariableFunctions


def lower(spec: Spec) -> Lowered:
    """The call that the source made."""
    kernel, domain = spec.kernel, spec.domain
    assert isinstance(kernel, Gated)
    assert isinstance(domain, Past)
    if domain.single_step:
        name = f"{kernel.cell}_cell"
        roles = ("input", "hidden", "w_ih", "w_hh", "b_ih", "b_hh")
        arguments = [role if role in spec.operands else "None" for role in roles]
    else:
        name = kernel.cell
        flags = (kernel.bias, kernel.layers, kernel.dropout, kernel.training, domain.directions == 2)
        arguments = ["input", "hidden", "weights", *(repr(flag) for flag in (*flags, kernel.batch_first))]
    return Lowered(spec.operands, f"{name}({', '.join(arguments)})", {name: getattr(_functions, name)})
