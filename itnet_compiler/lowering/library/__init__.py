"""Lowering ``library``: the framework's own operator, called exactly as the original model called it.

One file a kernel, each with ``KERNEL``, its class, and ``lower(spec) -> Lowered``.
"""

from __future__ import annotations

from typing import Any

from ...ir.kernel import Kernel, Spec
from ...registry import scan
from ..base import Lowered, Lowering, Support

__all__ = ["Library"]


class Library(Lowering):
    """Runs the exact library operator; the default, since the same kernels give the same bits."""

    name = "library"
    rank = 0

    def supports(self, spec: Spec) -> Support:
        if type(spec.kernel) in _by_kernel():
            return Support()
        return Support((f"no library operator computes the {type(spec.kernel).__name__} kernel",))

    def build(self, spec: Spec) -> Lowered:
        return _by_kernel()[type(spec.kernel)].lower(spec)


def _by_kernel() -> dict[type[Kernel], Any]:
    return {module.KERNEL: module for module in scan("itnet_compiler.lowering.library")}
