"""Lowering ``scan``: linear recurrences step after step in one pass over memory, by the operators of ``runtime/scan``.

The operators are found by name: they are registered when the package is imported.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ir.arranged_state import ArrangedState
from ..ir.kernel import Kernel, Spec
from ..ir.matrix_state import MatrixState
from ..ir.memory import GatedDelta, Memory, StateSpaceDual
from ..ir.selective import Selective
from ..ir.semiseparable import Diagonal
from .arranged import arranged
from .base import Lowered, Lowering, Support

__all__ = ["Scan"]


class Scan(Lowering):
    """Fused sequential scans: memory of one state, whatever the length. The default of the ``semiseparable`` family."""

    name = "scan"
    rank = 1

    def supports(self, spec: Spec) -> Support:
        if type(spec.kernel) in _FUNCTIONS or isinstance(spec.kernel, ArrangedState):
            return Support()
        return Support((f"the {type(spec.kernel).__name__} kernel is no linear recurrence",))

    def build(self, spec: Spec) -> Lowered:
        if isinstance(spec.kernel, ArrangedState):
            return arranged(spec, "scan", torch.ops.itnet.matrix_scan)
        function = _FUNCTIONS[type(spec.kernel)]
        arguments = ", ".join(f"{role}={role}" for role in spec.operands)
        return Lowered(
            spec.operands,
            f"scan({arguments})",
            {"scan": partial(function, spec.kernel)},
            text=textwrap.dedent(inspect.getsource(function)),
        )


def _diagonal(kernel: Diagonal, decay: Tensor, input: Tensor, initial: Tensor | None = None) -> Any:
    decay = decay.unsqueeze(0) if kernel.constant else decay
    return torch.ops.itnet.linear_scan(decay, input, initial, kernel.reverse)


def _selective(
    kernel: Selective,
    input: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    gate: Tensor | None = None,
    delta_bias: Tensor | None = None,
    initial: Tensor | None = None,
) -> Any:
    steps = kernel.steps(delta, delta_bias)
    y, last = torch.ops.itnet.selective_scan(input, steps, A, B, C, initial)
    return kernel.finished(y, last, input, D, gate)


def _matrix_state(
    kernel: MatrixState,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None = None,
    decay: Tensor | None = None,
    initial: Tensor | None = None,
) -> Any:
    if kernel.delta:
        return torch.ops.itnet.delta_scan(query, key, value, beta, decay, initial)
    return torch.ops.itnet.matrix_scan(query, key, value, decay, initial)


def _memory(kernel: Memory, **operands: Tensor) -> Any:
    y, last = _matrix_state(kernel.state(), **kernel.prepared(**operands))
    return kernel.finished(y, last, **operands)


_FUNCTIONS: dict[type[Kernel], Callable[..., Any]] = {
    Diagonal: _diagonal,
    Selective: _selective,
    MatrixState: _matrix_state,
    StateSpaceDual: _memory,
    GatedDelta: _memory,
}
