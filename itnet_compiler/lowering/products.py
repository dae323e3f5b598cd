"""Lowering ``products``: softmax attention as two products with a softmax between them, all weights in memory.

What people write by hand. It rounds as theirs does: the gradient of a softmax that is nearly one-hot is the difference
of two numbers that agree to the last digit here, while the backward of the fused operator takes them from different
sums (Σ dO·O against dO·V; arXiv:2205.14135, section 3.1, appendix B.4).
"""

from __future__ import annotations

from ..ir.attention import Attention
from ..ir.integral import Integral
from ..ir.kernel import Spec
from .base import Lowered, Lowering, Support
from .library import attention

__all__ = ["Products", "is_fused"]


class Products(Lowering):
    """For attention that was written out: slower than the fused operator, memory of the size of all weights."""

    name = "products"

    def supports(self, spec: Spec) -> Support:
        if isinstance(spec.kernel, Attention):
            return Support()
        return Support((f"the {type(spec.kernel).__name__} kernel was not written as products and a softmax",))

    def build(self, spec: Spec) -> Lowered:
        return attention.written_out(spec, "as it was written")


def is_fused(integral: Integral) -> bool:
    """Whether attention that was written out is run by the fused operator."""
    kernel = integral.spec.kernel
    if integral.plan.lowering != "library" or not isinstance(kernel, Attention):
        return False
    return not isinstance(attention.fused_form(kernel), str)
