"""Lowering ``fft``: a recurrence whose kernel depends on t − s alone is a convolution with its impulse response."""

from __future__ import annotations

import inspect
import textwrap
from functools import partial

import torch
from torch import Tensor

from ..ir.kernel import Spec
from ..ir.semiseparable import Diagonal
from .base import Lowered, Lowering, Support

__all__ = ["Fft"]


class Fft(Lowering):
    """Convolution by the fast Fourier transform: O(T log T), and every output rounds as the largest one does."""

    name = "fft"

    def supports(self, spec: Spec) -> Support:
        if not isinstance(spec.kernel, Diagonal):
            return Support((f"the {type(spec.kernel).__name__} kernel is not a diagonal linear recurrence",))
        if not spec.kernel.constant:
            return Support(("its decay changes with time, so its kernel is no convolution",))
        return Support()

    def build(self, spec: Spec) -> Lowered:
        assert isinstance(spec.kernel, Diagonal)
        arguments = ", ".join(f"{role}={role}" for role in spec.operands)
        return Lowered(
            spec.operands,
            f"convolve({arguments})",
            {"convolve": partial(_convolve, spec.kernel)},
            text=textwrap.dedent(inspect.getsource(_convolve)),
        )


def _convolve(kernel: Diagonal, decay: Tensor, input: Tensor, initial: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """h = (a^0, a^1, …) ∗ x + a^{t+1} h_0, over twice the length so that the end does not reach the beginning."""
    time = input.shape[0]
    dtype = kernel.result_type(input, decay)
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    decay, source = decay.to(wide), kernel.ordered(input.to(wide))
    if time == 0:
        start = source.new_zeros(source.shape[1:]) if initial is None else initial.expand(source.shape[1:])
        return input.to(dtype), start.to(dtype)
    response = kernel.impulse_response(decay.expand(input.shape[1:]), time)
    if wide.is_complex:
        spectrum = torch.fft.fft(response, 2 * time, dim=0) * torch.fft.fft(source, 2 * time, dim=0)
        states = torch.fft.ifft(spectrum, dim=0)[:time]
    else:
        spectrum = torch.fft.rfft(response, 2 * time, dim=0) * torch.fft.rfft(source, 2 * time, dim=0)
        states = torch.fft.irfft(spectrum, 2 * time, dim=0)[:time]
    if initial is not None:
        states = states + decay * response * initial.to(wide)
    return kernel.ordered(states).to(dtype), states[-1].to(dtype)
