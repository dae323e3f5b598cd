"""Recurrent layers and cells, as torch.export really shows them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.gated import Gated
from itnet_compiler.passes.match import Refusal, op_name
from itnet_compiler.passes.rules.recurrence import packed_recurrence, recurrence, recurrent_cell
from tests.passes.regions import captured, check_region, propose_one

pytestmark = pytest.mark.filterwarnings(
    "ignore:The tensor attribute.*assigned during export", "ignore:LSTM with projections"
)

LAYERS = {
    "lstm": lambda **settings: nn.LSTM(4, 6, **settings),
    "gru": lambda **settings: nn.GRU(4, 6, **settings),
    "rnn_tanh": lambda **settings: nn.RNN(4, 6, **settings),
    "rnn_relu": lambda **settings: nn.RNN(4, 6, nonlinearity="relu", **settings),
}
CELLS = {
    "lstm": lambda **settings: nn.LSTMCell(4, 6, **settings),
    "gru": lambda **settings: nn.GRUCell(4, 6, **settings),
    "rnn_tanh": lambda **settings: nn.RNNCell(4, 6, **settings),
    "rnn_relu": lambda **settings: nn.RNNCell(4, 6, nonlinearity="relu", **settings),
}


def _check(layer: nn.Module, kernel: Gated, domain: Past, *inputs: Any, definition: bool = True) -> None:
    graph = captured(layer, *inputs)
    rule = recurrent_cell if domain.single_step else recurrence
    proposal = propose_one(graph, rule)
    assert (proposal.spec.kernel, proposal.spec.domain) == (kernel, domain)
    assert proposal.spec.origin == kernel.cell + ("_cell" if domain.single_step else "")
    check_region(graph, proposal, *torch.utils._pytree.tree_leaves(inputs), definition=definition)


@pytest.mark.parametrize("cell", LAYERS)
def test_layers(cell: str) -> None:
    x = torch.randn(5, 3, 4)
    _check(LAYERS[cell]().eval(), Gated(cell), Past(), x)
    settings: dict[str, Any] = {"num_layers": 2, "bias": False, "batch_first": True, "bidirectional": True}
    kernel = Gated(cell, layers=2, bias=False, training=True, batch_first=True)
    _check(LAYERS[cell](**settings), kernel, Past(directions=2), x)


def test_initial_state() -> None:
    _check(nn.GRU(4, 6).eval(), Gated("gru"), Past(), torch.randn(5, 3, 4), torch.randn(1, 3, 6))
    state = (torch.randn(1, 3, 6), torch.randn(1, 3, 6))
    _check(nn.LSTM(4, 6).eval(), Gated("lstm"), Past(), torch.randn(5, 3, 4), state)


def test_projection() -> None:
    layer = nn.LSTM(4, 6, num_layers=2, proj_size=3, bidirectional=True)
    kernel = Gated("lstm", layers=2, training=True, projection=True)
    _check(layer, kernel, Past(directions=2), torch.randn(5, 3, 4))
    without_bias = nn.LSTM(4, 6, proj_size=3, bias=False).eval()
    _check(without_bias, Gated("lstm", bias=False, projection=True), Past(), torch.randn(5, 3, 4))


def test_dropout_between_layers_is_what_runs() -> None:
    layer = nn.LSTM(4, 6, num_layers=2, dropout=0.3)
    x = torch.randn(5, 3, 4)
    _check(layer, Gated("lstm", layers=2, dropout=0.3, training=True), Past(), x, definition=False)
    _check(layer.eval(), Gated("lstm", layers=2), Past(), x)


def test_without_batch() -> None:
    _check(nn.LSTM(4, 6).eval(), Gated("lstm"), Past(), torch.randn(5, 4))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("cell", CELLS)
def test_cells(cell: str, bias: bool) -> None:
    _check(CELLS[cell](bias=bias), Gated(cell, bias=bias), Past(single_step=True), torch.randn(3, 4))


def test_cell_with_state() -> None:
    state = (torch.randn(3, 6), torch.randn(3, 6))
    _check(nn.LSTMCell(4, 6), Gated("lstm"), Past(single_step=True), torch.randn(3, 4), state)


def test_packed_sequences_are_refused() -> None:
    graph = torch.fx.Graph()
    data, sizes, h, c = (graph.placeholder(name) for name in ("data", "batch_sizes", "h", "c"))
    weights = [graph.placeholder(f"weight{index}") for index in range(4)]
    node = graph.call_function(torch.ops.aten.lstm.data, (data, sizes, [h, c], weights, True, 1, 0.0, False, False))
    assert op_name(node) in packed_recurrence.anchors
    with pytest.raises(Refusal, match="every time step has another batch size"):
        packed_recurrence(node)
