"""Recurrent layers as loops over rows: one product for the inputs of all steps, then the cell's step, row by row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ir.domain import Past
from ..ir.gated import Gated
from ..ir.kernel import Spec
from ..ir.pair.builder import Builder
from ..ir.pair.program import PAIR, SHARED

__all__ = ["cell_program", "layer_runner", "refusals"]


def refusals(spec: Spec) -> tuple[str, ...]:
    """Why a layer is not run as a loop over rows; nothing if it is.

    What the source called is run by the same operator, to the same bits. An LSTM that was written out as a loop is
    faster in the library: its products are the limit, and there they are one with the rest.
    """
    kernel, domain = spec.kernel, spec.domain
    assert isinstance(kernel, Gated)
    assert isinstance(domain, Past)
    if not spec.origin.endswith(" loop") or kernel.cell == "lstm":
        return (f"the library runs {spec.origin}",)
    if domain.single_step or domain.directions != 1 or kernel.layers != 1:
        return ("more than one layer in one direction, or a single step",)
    return ()


# Texts by cell, units and bias: a dictionary is what torch.compile can look into, where a cached function is traced.
_written: dict[tuple[str, int, bool], str] = {}


def cell_program(cell: str, units: int, bias: bool) -> str:
    """Text of one step: inputs ``x0`` (W_ih x + b_ih), ``h0``, ``w0`` (W_hh) and, with ``bias``, ``w1`` (b_hh)."""
    b = Builder()
    gates = 3 if cell == "gru" else 1
    h, x = b.input("h0", PAIR, (units,)), b.input("x0", PAIR, (gates * units,))
    product = b.linear(h, b.input("w0", SHARED, (gates * units, units)))
    if bias:
        product = b.add(product, b.input("w1", SHARED, (gates * units,)))
    if cell != "gru":
        after = b.elementwise(cell.removeprefix("rnn_"), b.add(x, product))
        return str(b.program([after, after]))
    given, carried = ([b.slice(one, 0, i * units, (i + 1) * units) for i in range(3)] for one in (x, product))
    reset, update = (b.elementwise("sigmoid", b.add(given[i], carried[i])) for i in range(2))
    candidate = b.elementwise("tanh", b.add(given[2], b.mul(reset, carried[2])))
    after = b.add(b.mul(b.sub(b.constant(1.0), update), candidate), b.mul(update, h))
    return str(b.program([after, after]))


def layer_runner(kernel: Gated, other: Callable[..., Any]) -> Callable[..., Any]:
    """What runs a layer: the operator of loops over rows where its operands are those it takes, else ``other``."""
    axis = int(kernel.batch_first)

    def fits(input: Tensor, hidden: Tensor, weights: list[Tensor]) -> bool:
        tensors = (input, hidden, *weights)
        if any(one.dtype != torch.float32 or one.device.type != "cpu" for one in tensors):
            return False
        batched = input.dim() == hidden.dim() == 3 and hidden.shape[1] == input.shape[1 - axis]
        return batched and input.shape[axis] > 0 and not torch.is_autocast_enabled("cpu")

    def run_layer(input: Tensor, hidden: Tensor, weights: list[Tensor]) -> tuple[Tensor, ...]:
        if not fits(input, hidden, weights):
            found: tuple[Tensor, ...] = other(input, hidden, weights)
            return found
        key = kernel.cell, weights[1].shape[1], kernel.bias
        if key not in _written:
            _written[key] = cell_program(*key)
        given = torch.nn.functional.linear(input, weights[0], weights[2] if kernel.bias else None)
        shared, steps = weights[1::2], input.shape[axis]
        output, last, *_ = torch.ops.itnet.row_loop([hidden[0]], [given], shared, _written[key], [axis], [axis], steps)
        return output, last.unsqueeze(0)

    return run_layer
