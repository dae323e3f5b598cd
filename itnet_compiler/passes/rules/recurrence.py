"""Rules ``recurrence`` and ``recurrent_cell``: LSTM, GRU and Elman networks, whole sequences and single steps."""

from __future__ import annotations

from torch.fx import Node

from ...ir.domain import Past
from ...ir.gated import Gated
from ...ir.kernel import Spec
from ..match import Match, Proposal, bind, op_name, present, propose, rule

__all__ = ["packed_recurrence", "recurrence", "recurrent_cell"]

_CELLS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def _cell(node: Node) -> str:
    """``lstm`` of ``aten.lstm.input`` and of ``aten.lstm_cell.default``."""
    return op_name(node).split(".")[1].removesuffix("_cell")


@rule("recurrence", *(f"aten.{cell}.input" for cell in _CELLS))
def recurrence(node: Node, match: Match) -> Proposal:
    """All layers and directions of one call; the node returns the operator's tuple (output, h[, c])."""
    given, cell = bind(node), _cell(node)
    flags = {
        name: match.literal(given[name], name)
        for name in ("has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
    }
    directions = 2 if flags["bidirectional"] else 1
    weights, hidden = given["params"], given["hx"]
    match.require(isinstance(weights, (list, tuple)), "the weights are not listed")
    groups = flags["num_layers"] * directions
    per_group, rest = divmod(len(weights), groups)
    plain = 4 if flags["has_biases"] else 2
    projected = cell == "lstm" and per_group == plain + 1
    match.require(rest == 0 and (projected or per_group == plain), f"{len(weights)} weights for {groups} groups")
    kernel = Gated(
        cell,
        layers=flags["num_layers"],
        bias=flags["has_biases"],
        dropout=float(flags["dropout"]) if flags["train"] else 0.0,
        training=flags["train"],
        projection=projected,
        batch_first=flags["batch_first"],
    )
    operands = {"input": given["input"], "hidden": hidden, "weights": weights}
    return propose(Spec(kernel, Past(directions), cell, present(operands)), operands, node)


@rule("recurrent_cell", *(f"aten.{cell}_cell.default" for cell in _CELLS))
def recurrent_cell(node: Node, match: Match) -> Proposal:
    """One step: h' (and c' for lstm) from the input and the state given."""
    given, cell = bind(node), _cell(node)
    match.require((given["b_ih"] is None) == (given["b_hh"] is None), "one of the two biases is missing")
    kernel = Gated(cell, bias=given["b_ih"] is not None)
    names = ("w_ih", "w_hh", "b_ih", "b_hh")
    operands = {"input": given["input"], "hidden": given["hx"]} | {name: given[name] for name in names}
    return propose(Spec(kernel, Past(single_step=True), f"{cell}_cell", present(operands)), operands, node)


@rule("packed_recurrence", *(f"aten.{cell}.data" for cell in _CELLS))
def packed_recurrence(node: Node, match: Match) -> Proposal:
    """Packed sequences have a batch size of their own at every step, which a ``Past`` domain cannot say."""
    match.refuse("the sequences are packed: every time step has another batch size")
