"""Library lowering of ``Softmax``: the fused attention operator."""

from __future__ import annotations

import torch

from ...ir.domain import Keys
from ...ir.kernel import Spec
from ...ir.softmax import Softmax
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Softmax


def lower(spec: Spec) -> Lowered:
    """The call that the source made."""
    kernel, domain = spec.kernel, spec.domain
    assert isinstance(kernel, Softmax)
    assert isinstance(domain, Keys)
    mask = "mask" if "mask" in spec.operands else "None"
    settings = f"scale={kernel.scale!r}, enable_gqa={kernel.grouped}"
    call = f"attention(query, key, value, {mask}, {kernel.dropout!r}, {domain.causal}, {settings})"
    return Lowered(spec.operands, call, {"attention": torch._C._nn.scaled_dot_product_attention})
