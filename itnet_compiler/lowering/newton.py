"""Lowering ``newton``: all steps of a nonlinear recurrence at once, by Newton's method for the sequence of its states.

DEER (arXiv:2309.12252) with whole Jacobians where the state is small, else quasi-DEER (arXiv:2407.19115): a few dozen
operators over all steps for each iteration, in place of a few for each step. The operator is found by name: it is
registered when the package is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..errors import LoweringError
from ..ir.domain import Past
from ..ir.gated import Gated
from ..ir.kernel import Spec
from ..ir.loop import Loop
from ..ir.row_step import RowStep
from .base import Lowered, Lowering, Support
from .cells import cell_text
from .library.gated import lower as library_layer
from .library.loop import lower as library
from .outcomes import Outcome, outcome_of
from .row_loops import checked_step, loop_runner

__all__ = ["Newton", "outcomes"]

# Tolerance in units of the rounding error of the dtype, unless one is given.
_ROUNDINGS = 32


class Newton(Lowering):
    """Loops whose step treats every row of a batch alone, and recurrent layers. Never a default: one asks for it.

    Iterates until every state is, to ``tolerance``, what the step makes of the one before it, and otherwise runs the
    steps one by one. Takes float32 and float64; other dtypes, and calls under autocast, run in the library.
    """

    name = "newton"
    exact = False

    def __init__(self, tolerance: float | None = None) -> None:
        self.tolerance = tolerance

    @property
    def error(self) -> str:  # type: ignore[override]
        """What a state may be off by."""
        bound = f"{_ROUNDINGS} roundings" if self.tolerance is None else f"{self.tolerance:g}"
        return f"each step to {bound} of its state, or run one by one"

    def within(self, tolerance: float) -> Newton:
        if not (0.0 < tolerance < math.inf):
            raise LoweringError(f"{tolerance!r} is no tolerance", remedy="give a positive number, such as 1e-5")
        return Newton(float(tolerance))

    def supports(self, spec: Spec) -> Support:
        if isinstance(spec.kernel, Gated):
            return Support(_refusals(spec))
        if not isinstance(spec.kernel, Loop):
            return Support((f"the {type(spec.kernel).__name__} kernel is no nonlinear recurrence",))
        found = checked_step(spec.kernel)
        return Support() if isinstance(found, RowStep) else Support(found)

    def build(self, spec: Spec) -> Lowered:
        kernel, roles = spec.kernel, ", ".join(spec.operands)
        if isinstance(kernel, Gated):
            scope = {"run_layer": self._layer(spec, library_layer(spec).function)}
            text = f"# all steps of a {kernel.cell} at once; {self.error}\n"
            return Lowered(spec.operands, f"run_layer({roles})", scope, text, lambda like: text + _last(spec, like))
        assert isinstance(kernel, Loop)
        step, other = checked_step(kernel), library(spec)
        assert isinstance(step, RowStep)
        text = f"# all steps at once; {self.error}\n{step.program.describe()}\n"
        scope = {"run_loop": loop_runner(kernel, step, self._call, _takes, other.function)}
        return Lowered(spec.operands, f"run_loop({roles})", scope, text, lambda like: text + _last(spec, like))

    def _call(
        self, initial: Sequence[Tensor], inputs: Sequence[Tensor], shared: Sequence[Tensor], *how: Any
    ) -> list[Tensor]:
        dtype = initial[0].dtype
        tolerance = _ROUNDINGS * torch.finfo(dtype).eps if self.tolerance is None else self.tolerance
        found: list[Tensor] = torch.ops.itnet.newton_loop(initial, inputs, shared, *how, tolerance)
        return found

    def _layer(self, spec: Spec, other: Callable[..., Any]) -> Callable[..., Any]:
        kernel, domain = spec.kernel, spec.domain
        assert isinstance(kernel, Gated)
        assert isinstance(domain, Past)
        axis, lstm, size = int(kernel.batch_first), kernel.cell == "lstm", 2 + 2 * kernel.bias

        def run_layer(input: Tensor, hidden: Any, weights: Sequence[Tensor]) -> Any:
            states = list(hidden) if lstm else [hidden]
            if input.dim() != 3 or input.shape[axis] == 0 or not _takes((input, *states, *weights)):
                return other(input, hidden, weights)
            # Time comes first, as in the library, whose results are transposed where the batch does.
            sequence, steps, lasts = input.transpose(0, axis), input.shape[axis], []
            for layer in range(kernel.layers):
                outputs = []
                for direction in range(domain.directions):
                    index = layer * domain.directions + direction
                    own = weights[index * size : (index + 1) * size]
                    given = torch.nn.functional.linear(sequence, own[0], own[2] if kernel.bias else None)
                    given = given.flip(0) if direction else given
                    text = cell_text(kernel.cell, own[1].shape[1], kernel.bias)
                    initial = [one[index] for one in states]
                    output, *rest = self._call(initial, [given], own[1::2], text, [0], [0], steps)
                    outputs.append(output.flip(0) if direction else output)
                    lasts.append(rest[: len(states)])
                sequence = torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]
            return sequence.transpose(0, axis), *(torch.stack(parts) for parts in zip(*lasts, strict=True))

        return run_layer


def _takes(tensors: Sequence[Tensor]) -> bool:
    """One dtype of full precision, one device, and something to compute."""
    first = tensors[0]
    alike = all(one.dtype == first.dtype and one.device == first.device for one in tensors)
    kinds = first.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(first.device.type)
    return alike and kinds and all(one.numel() > 0 for one in tensors)


def _refusals(spec: Spec) -> tuple[str, ...]:
    kernel, domain = spec.kernel, spec.domain
    assert isinstance(kernel, Gated)
    assert isinstance(domain, Past)
    reasons = []
    if domain.single_step:
        reasons.append("a single step has nothing to be done at once")
    if kernel.projection:
        reasons.append("the state is projected, so its parts have several widths")
    if kernel.dropout:
        reasons.append("dropout between layers draws random numbers in the library's order")
    return tuple(reasons)


def outcomes(spec: Spec, examples: Mapping[str, Any]) -> tuple[Outcome | None, Outcome | None]:
    """How the last forward pass of a step, and its last gradient, ended, for a node with operands like ``examples``.

    Nodes with one and the same step (layers of one size) share them; None where there was no run.
    """
    kernel = spec.kernel
    if isinstance(kernel, Gated):
        text = cell_text(kernel.cell, int(examples["weights"][1].shape[1]), kernel.bias)
    else:
        assert isinstance(kernel, Loop)
        step = checked_step(kernel)
        assert isinstance(step, RowStep)
        text = str(step.program)
    return outcome_of(text), outcome_of(f"{text}\nreverse")


def _last(spec: Spec, examples: Mapping[str, Any]) -> str:
    found = zip(("last run of this step", "its last gradient"), outcomes(spec, examples), strict=True)
    return "".join(f"# {name}: {outcome}\n" for name, outcome in found if outcome is not None)
