"""Library lowering of ``Fold``: ``col2im``."""

from __future__ import annotations

import torch

from ...ir.domain import Window
from ...ir.fold import Fold
from ...ir.kernel import Spec
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Fold


def lower(spec: Spec) -> Lowered:
    """The operator that ``torch.nn.functional.fold`` calls."""
    domain = spec.domain
    assert isinstance(domain, Window)
    padding = [low for low, _ in domain.padding]
    numbers = f"{list(domain.size)}, {list(domain.dilation)}, {padding}, {list(domain.stride)}"
    return Lowered(spec.operands, f"col2im(input, output_size, {numbers})", {"col2im": torch._C._nn.col2im})
