"""Lowering ``fused``: all steps of a loop over rows in one operator, machine code on the CPU and Triton on a GPU.

The operator is found by name: it is registered when the package is imported. It takes float32 tensors; all others, and
those whose sizes do not fit the step, run as in the library's lowering, and recurrent layers on a GPU too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from ..ir.gated import Gated
from ..ir.kernel import Spec
from ..ir.loop import Loop
from ..ir.row_reverse import irregular
from ..ir.row_step import RowStep
from .base import Lowered, Lowering, Support
from .cells import is_faster, layer_runner, refusals
from .library.gated import lower as library_layer
from .library.loop import lower as library
from .row_loops import checked_step, loop_runner

__all__ = ["Fused"]


class Fused(Lowering):
    """Loops whose step treats every row of a batch alone, recurrent layers among them that were written out.

    The default where it can run, and llvmlite or Triton is installed.
    """

    name = "fused"
    rank = -1

    def supports(self, spec: Spec) -> Support:
        if not isinstance(spec.kernel, (Gated, Loop)):
            return Support((f"the {type(spec.kernel).__name__} kernel is no loop",))
        if not _devices():
            return Support(("neither llvmlite nor triton is installed",))
        if isinstance(spec.kernel, Gated):
            return Support(refusals(spec) if "cpu" in _devices() else ("llvmlite is not installed",))
        found = _step(spec.kernel)
        return Support() if isinstance(found, RowStep) else Support(found)

    def prefers(self, spec: Spec) -> bool:
        return not isinstance(spec.kernel, Gated) or is_faster(spec.kernel)

    def build(self, spec: Spec) -> Lowered:
        kernel, roles = spec.kernel, ", ".join(spec.operands)
        if isinstance(kernel, Gated):
            layer = layer_runner(kernel, library_layer(spec).function)
            return Lowered(spec.operands, f"run_layer({roles})", {"run_layer": layer})
        assert isinstance(kernel, Loop)
        step, other = _step(kernel), library(spec)
        assert isinstance(step, RowStep)
        text = f"# float32: one operator with this step\n{step.program.describe()}\n# else\n{other.text}"
        scope = {"run_loop": loop_runner(kernel, step, torch.ops.itnet.row_loop, _takes, other.function)}
        return Lowered(spec.operands, f"run_loop({roles})", scope, text=text)


@cache
def _devices() -> tuple[str, ...]:
    """Types of devices for which steps can be compiled."""
    compilers = {"cpu": "llvmlite", "cuda": "triton"}
    return tuple(device for device, package in compilers.items() if importlib.util.find_spec(package) is not None)


def _step(kernel: Loop) -> RowStep | tuple[str, ...]:
    """The step for one row, or why there is no machine code for it."""
    found = checked_step(kernel)
    reasons = irregular(found.program, len(kernel.body.carried)) if isinstance(found, RowStep) else ()
    return reasons or found


def _takes(tensors: Sequence[Tensor]) -> bool:
    """Float32 on a device for which steps are compiled; not under autocast, where products are in half precision."""
    device = tensors[0].device.type
    fits = all(one.dtype == torch.float32 and one.device.type == device for one in tensors)
    return fits and device in _devices() and not torch.is_autocast_enabled(device)
