"""Library lowering of ``Pairwise``: our own operator, which the source called."""

from __future__ import annotations

import torch

from ...ir.domain import reach
from ...ir.kernel import Spec
from ...ir.pairwise import Pairwise
from ..base import Lowered
from ..tiled import Tiled, listing

__all__ = ["KERNEL", "lower"]

KERNEL = Pairwise


def lower(spec: Spec) -> Lowered:
    """The call that the source made."""
    kernel = spec.kernel
    assert isinstance(kernel, Pairwise)
    inputs = ", ".join(item.name for item in kernel.program.inputs)
    extra = [role if role in spec.operands else "None" for role in ("measure", "mask", "like_queries")]
    bounds = [str(-1 if bound is None else bound) for bound in reach(spec.domain)]
    arguments = ["value", f"[{inputs}]", *extra, "program", repr(kernel.normalise), *bounds]
    names = {"integrate": torch.ops.itnet.integrate.default, "program": str(kernel.program)}
    call = f"integrate({', '.join(arguments)})"
    return Lowered(spec.operands, call, names, text=listing(kernel.program), write=Tiled().build(spec).write)
