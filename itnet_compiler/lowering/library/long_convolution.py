"""Library lowering of ``LongConvolution``: a product of ``torch.fft`` transforms."""

from __future__ import annotations

import torch

from ...ir.kernel import Spec
from ...ir.long_convolution import LongConvolution
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = LongConvolution


def lower(spec: Spec) -> Lowered:
    """irfft(rfft(u)·rfft(k)), or with fft and ifft for complex numbers."""
    kernel = spec.kernel
    assert isinstance(kernel, LongConvolution)
    one = len(kernel.axes) == 1
    axes = repr(kernel.axes[0] if one else kernel.axes)
    size = f"input.size({kernel.axes[0]})"
    length = f"2 * {size}" if kernel.causal else "period[0]" if one else "period"
    there, back = ("rfft", "irfft") if kernel.real else ("fft", "ifft")
    there, back = (name if one else f"{name}n" for name in (there, back))
    filter_ = "filter" if kernel.spectrum else f"{there}(filter, {length}, {axes})"
    text = f"{back}({there}(input, {length}, {axes}) * {filter_}, {length}, {axes})"
    if kernel.causal:
        text += f".narrow({kernel.axes[0]}, 0, {size})"
    names = {name: getattr(torch.fft, name) for name in (there, back)}
    if kernel.exponent:
        count = length if one else "prod(period)"
        text = f"{text} * ({count}) ** {kernel.exponent!r}"
        names |= {} if one else {"prod": _product}
    return Lowered(spec.operands, text, names)


def _product(lengths: list[int]) -> int:
    result = 1
    for length in lengths:
        result *= length
    return result
