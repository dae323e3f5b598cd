"""Library lowering of ``ProjectedSoftmax``: torch's native multi-head attention."""

from __future__ import annotations

import torch

from ...ir.kernel import Spec
from ...ir.projected_softmax import MASKS, ProjectedSoftmax
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = ProjectedSoftmax

_functions = torch._C._VariableFunctions


def lower(spec: Spec) -> Lowered:
    """The call that ``nn.MultiheadAttention`` makes on its fast path. The operator has no derivative."""
    kernel = spec.kernel
    assert isinstance(kernel, ProjectedSoftmax)
    mask, mask_type = ("mask", MASKS.index(kernel.mask)) if kernel.mask else ("None", None)
    projections = "qkv_weight, qkv_bias, proj_weight, proj_bias"
    sizes = f"input.size(-1), {kernel.heads}"
    flags = f"{bool(kernel.weights)}, {kernel.weights != 'heads'}, {mask_type}"
    call = f"attention(input, input, input, {sizes}, {projections}, {mask}, {flags})"
    pick = "" if kernel.weights else "[0]"
    return Lowered(spec.operands, call + pick, {"attention": _functions._native_multi_head_attention})
