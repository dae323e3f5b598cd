"""What lowerings share that run all steps of a loop over rows in one operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..ir.domain import Past
from ..ir.loop import Loop
from ..ir.pair.dense import run
from ..ir.row_reverse import reverse
from ..ir.row_step import NotRows, RowStep, row_step

__all__ = ["Call", "checked_step", "loop_runner"]

# Called with initial, inputs, shared, program, axes, stacked and number of steps, as ``torch.ops.itnet.row_loop``.
Call = Callable[..., list[Tensor]]


@lru_cache(maxsize=256)
def checked_step(kernel: Loop) -> RowStep | tuple[str, ...]:
    """The step for one row, or why there is none."""
    try:
        step = row_step(kernel)
        reverse(step.program, len(kernel.body.carried))
    except (NotRows, ValueError) as error:
        return (str(error),)
    return step if _agrees(kernel, step) else ("the step for one row differs from the step",)


def _agrees(kernel: Loop, step: RowStep) -> bool:
    """Whether the step for one row computes what the loop's own step computes, in float64 on random operands."""
    sample = kernel.miniature(Past(), ("initial", "inputs", "shared"))
    generator = torch.Generator().manual_seed(0)
    given = sample.operands(torch.float64, generator)
    first = tuple(one.select(axis, 0) for one, axis in zip(given["inputs"], kernel.axes, strict=True))
    known = {"carry": tuple(given["initial"]), "step": first, "shared": tuple(given["shared"])}
    known["local"] = tuple(kernel.body.run(0, *known.values()))
    wanted = [known[ref.kind][ref.index] for ref in (*kernel.body.carried, *kernel.body.outputs)]
    if not all(isinstance(one, Tensor) and one.is_floating_point() for one in wanted):
        return False
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


def loop_runner(
    kernel: Loop,
    step: RowStep,
    call: Call,
    takes: Callable[[Sequence[Tensor]], bool],
    other: Callable[..., Any],
) -> Callable[..., Any]:
    """What runs operands: ``call`` where it ``takes`` them and they fit the step, ``other`` if not."""
    text, count, kept = str(step.program), len(kernel.body.carried), len(kernel.body.outputs)
    shapes = {item.name: item.shape for item in step.program.inputs}
    masks = [[isinstance(shape, tuple) and shape[1] == "bool" for shape in group] for _, group in kernel.shapes]
    masked = any(map(any, masks))

    def as_numbers(groups: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
        """Operands with masks as zeros and ones of the dtype of the state."""
        dtype = groups[0][0].dtype
        return [
            [one.to(dtype) if is_mask and one.dtype == torch.bool else one for one, is_mask in zip(*pair, strict=True)]
            for pair in zip(groups, masks, strict=True)
        ]

    def fits(initial: Sequence[Tensor], inputs: Sequence[Tensor], shared: Sequence[Tensor]) -> bool:
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
        groups = as_numbers((initial, inputs, shared)) if masked else (initial, inputs, shared)
        if steps == 0 or not takes([one for group in groups for one in group]) or not fits(*groups):
            found: tuple[Tensor, ...] = other(initial, inputs, shared)
            return found
        made = call(*groups, text, kernel.axes, kernel.stacked, steps)
        outputs, lasts = made[:kept], made[kept : kept + count]
        finals = [
            lasts[place] if carried else outputs[place].select(kernel.stacked[place], -1).clone()
            for carried, place in step.finals
        ]
        return (*outputs, *finals)

    return run_loop
