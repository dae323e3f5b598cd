"""Lowering ``scan``: linear recurrences step after step in one pass over memory, by the operators of ``runtime/scan``.

The operators are found by name: they are registered when the package is imported.
"""

from __future__ import annotations

import importlib.util
import inspect
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..ir.arranged_state import ArrangedState
from ..ir.kernel import Kernel, Spec
from ..ir.matrix_lstm import MatrixLSTM
from ..ir.matrix_state import MatrixState
from ..ir.memory import GatedDelta, Memory, StateSpaceDual
from ..ir.selective import Selective
from ..ir.semiseparable import Diagonal
from ..ir.weighted_average import WeightedAverage
from .arranged import arranged
from .base import Lowered, Lowering, Support
from .chunked import chunks

__all__ = ["Scan"]

# Whether scans are compiled for the CPU. Elsewhere the products of chunks are the way to gradients of the matrix memory
# of xLSTM from so many steps on.
_COMPILED, _LONG = importlib.util.find_spec("numba") is not None, 96


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
    return kernel.run(_matrix_state, **operands)


def _matrix_lstm(kernel: MatrixLSTM, **operands: Tensor) -> Any:
    """Where gradients are wanted of a long sequence, and the scan is not compiled for the CPU, in chunks."""
    trained = torch.is_grad_enabled() and any(one.requires_grad for one in operands.values())
    in_chunks = trained and operands["key"].shape[2] >= _LONG and not (_COMPILED and operands["key"].is_cpu)
    return kernel.run(chunks if in_chunks else _matrix_state, **operands)


def _weighted_average(kernel: WeightedAverage, **operands: Tensor) -> Any:
    given = kernel.prepared(**operands)
    w, u, k, v = (given[role] for role in ("decay", "bonus", "key", "value"))
    time = k.shape[1]
    with torch.no_grad():
        # The running maximum, from w·t taken out; in float64, since w·t may be large. What is scaled by it does not
        # depend on it, so nothing is differentiated through it but the last one, which is returned.
        ages = torch.arange(1, time + 1, device=k.device, dtype=torch.float64)[:, None] * w
        start = given["maximum"].double()[:, None]
        tops = torch.cat([start, k - ages], 1).cummax(1).values
        tops[:, 1:] += ages
        tops = tops.to(k.dtype)
    before, after = tops[:, :-1], tops[:, 1:]
    factors, now = torch.exp(before + w - after), torch.exp(k - after)
    states = []
    shift = torch.exp(given["maximum"] - tops[:, 0])  # 1, with the gradient of the maximum
    left = torch.arange(time - 1, -1, -1, device=k.device)[:, None] * w
    last = torch.cat([(given["maximum"] + time * w)[:, None], k + left], 1).amax(1)
    for role, source in (("numerator", now * v), ("denominator", now)):
        first = given[role] * shift
        scanned, end = torch.ops.itnet.linear_scan(factors.movedim(1, 0), source.movedim(1, 0), first, False)
        states.append((torch.cat([first[:, None], scanned.movedim(0, 1)[:, :-1]], 1)[:, :time], end))
    (n, n_last), (d, d_last) = states
    top = torch.maximum(before, (u + k).detach())
    past, now = torch.exp(before - top), torch.exp(u + k - top)
    y = (past * n + now * v) / (past * d + now)
    back = torch.exp(tops[:, -1] - last)  # 1, as above
    return y.to(operands["key"].dtype), n_last * back, d_last * back, last


_FUNCTIONS: dict[type[Kernel], Callable[..., Any]] = {
    Diagonal: _diagonal,
    Selective: _selective,
    MatrixState: _matrix_state,
    StateSpaceDual: _memory,
    GatedDelta: _memory,
    MatrixLSTM: _matrix_lstm,
    WeightedAverage: _weighted_average,
}
