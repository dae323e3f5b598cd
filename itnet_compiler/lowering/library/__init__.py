"""Lowering ``library``: the framework's own operator, called exactly as the original model called it.

One file a kernel family, each with ``FAMILY`` and ``lower(spec) -> Lowered``.
"""

from __future__ import annotations

from ...ir.kernel import Spec
from ...registry import scan
from ..base import Lowered, Lowering, Support

__all__ = ["Library"]


class Library(Lowering):
    """Runs the exact library operator; the default, since the same kernels give the same bits."""

    name = "library"

    def supports(self, spec: Spec) -> Support:
        if spec.kernel.family in _by_family():
            return Support()
        return Support((f"no library operator computes the {spec.kernel.family} family",))

    def build(self, spec: Spec) -> Lowered:
        return _by_family()[spec.kernel.family].lower(spec)


def _by_family() -> dict:
    return {module.FAMILY: module for module in scan("itnet_compiler.lowering.library")}
