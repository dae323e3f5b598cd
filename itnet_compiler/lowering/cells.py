"""Recurrent layers as loops over rows: one product for the inputs of all steps, then the cell's step, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ir.domain import Past
from ..ir.gated import GATES, Gated
from ..ir.kernel import Spec
from ..ir.pair.builder import Builder
from ..ir.pair.program import PAIR, SHARED

__all__ = ["cell_program", "cell_text", "is_faster", "layer_runner", "refusals"]


def refusals(spec: Spec) -> tuple[str, ...]:
    """Why a layer is not run as a loop over rows; nothing if it is.

    What the source called is run by the same operator, to the same bits.
    """
    kernel, domain = spec.kernel, spec.domain
    assert isinstance(kernel, Gated)
    assert isinstance(domain, Past)
    if not spec.origin.endswith(" loop") or kernel.projection:
        return (f"the library runs {spec.origin}",)
    if domain.single_step or domain.directions != 1 or kernel.layers != 1:
        return ("more than one layer in one direction, or a single step",)
    return ()


def is_faster(kernel: Gated) -> bool:
    """Whether a layer that was written out is faster so than in the library, at any number of threads.

    With one thread an LSTM is not: its products are the limit, and in the library they are one with the rest.
    """
    return kernel.cell != "lstm"


# Texts by cell, units and bias: a dictionary is what torch.compile can look into, where a cached function is traced.
_written: dict[tuple[str, int, bool], str] = {}


def cell_program(cell: str, units: int, bias: bool) -> str:
    """Text of one step: inputs ``x0`` (W_ih x + b_ih), ``h0``, ``w0`` (W_hh) and, with ``bias``, ``w1`` (b_hh).

    For lstm also ``h1``, the cell state.
    """
    b = Builder()
    gates = GATES[cell]
    h, x = b.input("h0", PAIR, (units,)), b.input("x0", PAIR, (gates * units,))
    product = b.linear(h, b.input("w0", SHARED, (gates * units, units)))
    if bias:
        product = b.add(product, b.input("w1", SHARED, (gates * units,)))
    if cell == "lstm":
        parts = [b.slice(b.add(x, product), 0, i * units, (i + 1) * units) for i in range(4)]
        enter, keep, leave = (b.elementwise("sigmoid", parts[i]) for i in (0, 1, 3))
        kept = b.mul(keep, b.input("h1", PAIR, (units,)))
        state = b.add(kept, b.mul(enter, b.elementwise("tanh", parts[2])))
        after = b.mul(leave, b.elementwise("tanh", state))
        return str(b.program([after, state, after]))
    if cell != "gru":
        after = b.elementwise(cell.removeprefix("rnn_"), b.add(x, product))
        return str(b.program([after, after]))
    given, carried = ([b.slice(one, 0, i * units, (i + 1) * units) for i in range(3)] for one in (x, product))
    reset, update = (b.elementwise("sigmoid", b.add(given[i], carried[i])) for i in range(2))
    candidate = b.elementwise("tanh", b.add(given[2], b.mul(reset, carried[2])))
    after = b.add(b.mul(b.sub(b.constant(1.0), update), candidate), b.mul(update, h))
    return str(b.program([after, after]))


def cell_text(cell: str, units: int, bias: bool) -> str:
    """``cell_program``, written once."""
    key = cell, units, bias
    if key not in _written:
        _written[key] = cell_program(cell, units, bias)
    return _written[key]


def layer_runner(kernel: Gated, other: Callable[..., Any]) -> Callable[..., Any]:
    """What runs a layer: the operator of loops over rows where its operands are those it takes, else ``other``."""
    axis, lstm = int(kernel.batch_first), kernel.cell == "lstm"

    def fits(input: Tensor, states: list[Tensor], weights: list[Tensor]) -> bool:
        tensors = (input, *states, *weights)
        if any(one.dtype != torch.float32 or one.device.type != "cpu" for one in tensors):
            return False
        rows = input.dim() == 3 and all(one.dim() == 3 and one.shape[1] == input.shape[1 - axis] for one in states)
        return rows and input.shape[axis] > 0 and not torch.is_autocast_enabled("cpu")

    def learns(*tensors: Tensor) -> bool:
        return torch.is_grad_enabled() and any(one.requires_grad for one in tensors)

    def run_layer(input: Tensor, hidden: Any, weights: list[Tensor]) -> tuple[Tensor, ...]:
        states = list(hidden) if lstm else [hidden]
        # The library keeps the gates of an LSTM for its backward pass, which is faster than to make them again.
        if not fits(input, states, weights) or (lstm and learns(input, *states, *weights)):
            found: tuple[Tensor, ...] = other(input, hidden, weights)
            return found
        text = cell_text(kernel.cell, weights[1].shape[1], kernel.bias)
        given = torch.nn.functional.linear(input, weights[0], weights[2] if kernel.bias else None)
        shared, steps, initial = weights[1::2], input.shape[axis], [one[0] for one in states]
        output, *rest = torch.ops.itnet.row_loop(initial, [given], shared, text, [axis], [axis], steps)
        return output, *(last.unsqueeze(0) for last in rest[: len(states)])

    return run_layer
