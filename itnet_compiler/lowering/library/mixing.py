"""Library lowering of ``Mixing``: the linear layer or product that the source calls."""

from __future__ import annotations

import torch

from ...ir.kernel import Spec
from ...ir.mixing import Mixing
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Mixing


def lower(spec: Spec) -> Lowered:
    """The call that the source made."""
    assert isinstance(spec.kernel, Mixing)
    if spec.kernel.left:
        return Lowered(spec.operands, "matmul(weight, input)", {"matmul": torch._C._VariableFunctions.matmul})
    return Lowered(spec.operands, f"linear({', '.join(spec.operands)})", {"linear": torch._C._nn.linear})
