"""Lowering ``fused``: all steps of a loop over rows in one operator, machine code on the CPU and Triton on a GPU.

The operator is found by name: it is registered when the package is imported. It takes float32 tensors; all others, and
those whose sizes do not fit the step, run as in the library's lowering, and recurrent layers on a GPU too.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..ir.domain import Past
from ..ir.gated import Gated
from ..ir.kernel import Spec
from ..ir.loop import Loop
from ..ir.pair.dense import run
from ..ir.row_reverse import irregular
from ..ir.row_step import NotRows, RowStep, row_step
from .base import Lowered, Lowering, Support
from .cells import is_faster, layer_runner, refusals
from .library.gated import lower as library_layer
from .library.loop import lower as library

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
        scope = {"run_loop": _runner(kernel, step, other.function)}
        return Lowered(spec.operands, f"run_loop({roles})", scope, text=text)


def _devices() -> tuple[str, ...]:
    """Types of devices for which steps can be compiled."""
    compilers = {"cpu": "llvmlite", "cuda": "triton"}
    return tuple(device for device, package in compilers.items() if importlib.util.find_spec(package) is not None)


@lru_cache(maxsize=256)
def _step(kernel: Loop) -> RowStep | tuple[str, ...]:
    """The step for one row, or why there is none."""
    try:
        step = row_step(kernel)
    except NotRows as error:
        return (str(error),)
    reasons = irregular(step.program, len(kernel.body.carried))
    if not reasons and not _agrees(kernel, step):
        reasons = ("the step for one row differs from the step",)
    return reasons or step


def _agrees(kernel: Loop, step: RowStep) -> bool:
    """Whether the step for one row computes what the loop's own step computes, in float64 on random operands."""
    sample = kernel.miniature(Past(), ("initial", "inputs", "shared"))
    generator = torch.Generator().manual_seed(0)
    given = sample.operands(torch.float64, generator)
    first = tuple(one.select(axis, 0) for one, axis in zip(given["inputs"], kernel.axes, strict=True))
    known = {"carry": tuple(given["initial"]), "step": first, "shared": tuple(given["shared"])}
    known["local"] = tuple(kernel.body.run(0, *known.values()))
    wanted = [known[ref.kind][ref.index] for ref in (*kernel.body.carried, *kernel.body.outputs)]
    letters = {"h": known["carry"], "x": first, "r": known["shared"], "w": known["shared"]}
    named = {item.name: letters[item.name[0]][int(item.name[1:])] for item in step.program.inputs}
    lead = given["initial"][0].dim() - 1
    for name, one in named.items():
        named[name] = one = one.double()  # a mask is given as numbers
        if name[0] == "w":
            named[name] = one.reshape(*(1,) * lead, *one.shape)
        elif one.dim() != lead + 1:
            return False
    made = run(step.program, named, lead)
    return all(_close(one.expand_as(other), other) for one, other in zip(made, wanted, strict=True))


def _close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).norm() <= 1e-10 * other.norm() + 1e-300)


def _runner(kernel: Loop, step: RowStep, other: Callable[..., Any]) -> Callable[..., Any]:
    """What runs operands: the operator where they fit it."""
    text, count, kept = str(step.program), len(kernel.body.carried), len(kernel.body.outputs)
    shapes, devices = {item.name: item.shape for item in step.program.inputs}, _devices()
    kinds = [shape[1] for _, group in kernel.shapes for shape in group if isinstance(shape, tuple)]
    dtypes, masked = [torch.bool if kind == "bool" else torch.float32 for kind in kinds], "bool" in kinds

    def fits(initial: Sequence[Tensor], inputs: Sequence[Tensor], shared: Sequence[Tensor]) -> bool:
        device, tensors = initial[0].device.type, (*initial, *inputs, *shared)
        if any(one.dtype != dtype or one.device.type != device for one, dtype in zip(tensors, dtypes, strict=True)):
            return False
        if device not in devices or torch.is_autocast_enabled(device):  # products are in half precision there
            return False
        lead = tuple(initial[0].shape[:-1])
        for letters, group in (("h", initial), ("x", inputs), ("rw", shared)):
            for place, one in enumerate(group):
                own = list(one.shape)
                if letters == "x":
                    del own[kernel.axes[place]]
                for letter in letters:
                    shape = shapes.get(f"{letter}{place}")
                    if shape is not None and tuple(own) != ((*lead, *shape) if letter != "w" else shape):
                        return False
        return True

    def run_loop(initial: Sequence[Tensor], inputs: Sequence[Tensor], shared: Sequence[Tensor]) -> tuple[Tensor, ...]:
        steps = kernel.length if kernel.length is not None else inputs[0].shape[kernel.axes[0]]
        if steps == 0 or not fits(initial, inputs, shared):
            return other(initial, inputs, shared)
        if masked:
            inputs, shared = ([one.float() for one in group] for group in (inputs, shared))
        found = torch.ops.itnet.row_loop(initial, inputs, shared, text, kernel.axes, kernel.stacked, steps)
        outputs, lasts = found[:kept], found[kept : kept + count]
        finals = [
            lasts[place] if carried else outputs[place].select(kernel.stacked[place], -1).clone()
            for carried, place in step.finals
        ]
        return (*outputs, *finals)

    return run_loop
