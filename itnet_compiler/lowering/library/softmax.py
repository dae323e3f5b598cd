"""Library lowering of ``softmax``: the fused attention operator, or the written-out products as the source had them."""

from __future__ import annotations

import torch
from torch import Tensor

from ...errors import LoweringError
from ...ir.domain import Keys
from ...ir.kernel import Spec
from ...ir.softmax import Softmax
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Softmax

_functions = torch._C._VariableFunctions


def lower(spec: Spec) -> Lowered:
    """The calls that the source made, in its order, so that bits and the random stream of dropout stay."""
    kernel, domain = spec.kernel, spec.domain
    assert isinstance(kernel, Softmax)
    assert isinstance(domain, Keys)
    return _fused(spec, kernel, domain) if kernel.form == "fused" else _written_out(spec, kernel, domain)


def _fused(spec: Spec, kernel: Softmax, domain: Keys) -> Lowered:
    mask = "mask" if "mask" in spec.operands else "None"
    settings = f"scale={kernel.scale!r}, enable_gqa={kernel.grouped}"
    call = f"attention(query, key, value, {mask}, {kernel.dropout!r}, {domain.causal}, {settings})"
    return Lowered(spec.operands, call, {"attention": torch._C._nn.scaled_dot_product_attention})


def _written_out(spec: Spec, kernel: Softmax, domain: Keys) -> Lowered:
    """softmax(q·kᵀ + mask)·v as in ``F.multi_head_attention_forward(need_weights=True)``."""
    if domain.causal:
        raise LoweringError("written-out attention has no causal form", remedy="give the mask as an operand")
    if kernel.scale is None:
        raise LoweringError("written-out attention needs its scale as a number", remedy="set scale=1/√D")
    product = kernel.form
    if kernel.form == "bmm" and "mask" in spec.operands and kernel.divisor == 1.0:
        alpha = "" if kernel.scale == 1.0 else f", alpha={kernel.scale!r}"
        scores = f"baddbmm(mask, query, key.transpose(-2, -1){alpha})"
    else:
        scores = f"{product}(query, key.transpose(-2, -1))"
        scores += "" if kernel.scale == 1.0 else f" * {kernel.scale!r}"
        scores += "" if kernel.divisor == 1.0 else f" / {kernel.divisor!r}"
        scores += " + mask" if "mask" in spec.operands else ""
    weights = f"softmax({scores}, -1)"
    if kernel.dropout:
        weights = f"dropout({weights}, {kernel.dropout!r}, True)"
    apply = f"{product}_and_weights" if kernel.returns_weights else product
    names = ("bmm", "baddbmm", "matmul", "softmax", "dropout")
    namespace = {name: getattr(_functions, name) for name in names}
    namespace |= {"bmm_and_weights": _bmm_and_weights, "matmul_and_weights": _matmul_and_weights}
    return Lowered(spec.operands, f"{apply}({weights}, value)", namespace)


def _bmm_and_weights(weights: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return _functions.bmm(weights, value), weights


def _matmul_and_weights(weights: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return _functions.matmul(weights, value), weights
