"""Library lowering of ``Sampled``: ``grid_sampler``."""

from __future__ import annotations

import torch

from ...ir.kernel import Spec
from ...ir.sampled import OUTSIDE, WEIGHTS, Sampled
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Sampled


def lower(spec: Spec) -> Lowered:
    """The operator that ``torch.nn.functional.grid_sample`` calls."""
    kernel = spec.kernel
    assert isinstance(kernel, Sampled)
    numbers = f"{WEIGHTS.index(kernel.weights)}, {OUTSIDE.index(kernel.outside)}, {kernel.align_corners}"
    call = f"grid_sampler(input, positions, {numbers})"
    return Lowered(spec.operands, call, {"grid_sampler": torch.grid_sampler})
