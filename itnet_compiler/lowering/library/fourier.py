"""Library lowering of ``Fourier``: ``torch.fft``."""

from __future__ import annotations

import torch

from ...ir.fourier import Fourier
from ...ir.kernel import Spec
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Fourier


def lower(spec: Spec) -> Lowered:
    """The transform over one axis or several."""
    kernel = spec.kernel
    assert isinstance(kernel, Fourier)
    lengths = "lengths" if "lengths" in spec.operands else "None"
    name, axes = kernel.transform, repr(kernel.axes)
    if len(kernel.axes) == 1:
        lengths, axes = lengths.replace("lengths", "lengths[0]"), repr(kernel.axes[0])
    else:
        name += "n"
    function = getattr(torch.fft, name)
    return Lowered(spec.operands, f"{name}(input, {lengths}, {axes}, {kernel.norm!r})", {name: function})
