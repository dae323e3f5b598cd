"""The gated family against its conformance suite, and its kernel matrix against the states it stands for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.gated import Gated
from tests.conformance import Case, check_case, conformance_cases

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

# The matrix gives the carried state, not the layer's output, so the suite's check does not apply; see below.
CASES = [case for case in conformance_cases(Gated) if case.check != "matrix"]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)


def _layer(cell: str, steps: int = 7, batch: int = 3, started: bool = False) -> dict[str, Any]:
    """Operands of one layer of 5 units over 4 features."""
    layer = {"lstm": nn.LSTM, "gru": nn.GRU}[cell](4, 5).double()
    fill = torch.randn if started else torch.zeros
    states = [fill(1, batch, 5, dtype=torch.float64) for _ in range(2)]
    return {
        "input": torch.randn(steps, batch, 4, dtype=torch.float64),
        "hidden": states if cell == "lstm" else states[0],
        "weights": list(layer._flat_weights),
    }


def _carried(cell: str, operands: dict[str, Any]) -> Tensor:
    """The carried state after every step, (B, H, T), by running the library's cell step by step."""
    step = {"lstm": torch.lstm_cell, "gru": torch.gru_cell}[cell]
    state = [part[0] for part in operands["hidden"]] if cell == "lstm" else operands["hidden"][0]
    found = []
    for x in operands["input"]:
        state = step(x, state, *operands["weights"])
        found.append(state[1] if cell == "lstm" else state)
    return torch.stack(found, -1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_kernel_matrix_reproduces_the_carried_state(cell: str) -> None:
    """From a zero state, c_t = Σ_s K(t, s)·tanh(g_s) and h_t = Σ_s K(t, s)·n_s."""
    operands = _layer(cell)
    matrix, values = Gated(cell).kernel_and_values(Past(), **operands)
    assert matrix.shape == (3, 5, 7, 7)
    assert not matrix.triu(1).any()
    torch.testing.assert_close(torch.einsum("bhts,bhs->bht", matrix, values), _carried(cell, operands))
    torch.testing.assert_close(Gated(cell).kernel_matrix(Past(), **operands), matrix)


def test_what_is_missing_is_the_initial_state_times_the_forget_gates() -> None:
    """GRU weights and the decay of the initial state sum to one: Σ_s K(t, s) + Π_{τ≤t} z_τ = 1."""
    operands = _layer("gru", started=True)
    matrix, values = Gated("gru").kernel_and_values(Past(), **operands)
    initial = operands["hidden"][0][..., None]
    from_values = torch.einsum("bhts,bhs->bht", matrix, values)
    torch.testing.assert_close(from_values + (1 - matrix.sum(-1)) * initial, _carried("gru", operands))


@pytest.mark.parametrize("batch_first", [False, True])
def test_kernel_matrix_reads_either_layout(batch_first: bool) -> None:
    operands = _layer("lstm")
    expected = Gated("lstm").kernel_matrix(Past(), **operands)
    if batch_first:
        operands["input"] = operands["input"].transpose(0, 1)
    found = Gated("lstm", batch_first=batch_first).kernel_matrix(Past(), **operands)
    torch.testing.assert_close(found, expected)


def test_no_kernel_matrix_without_gates_or_with_layers() -> None:
    operands = _layer("gru")
    for kernel, domain in (
        (Gated("rnn_tanh"), Past()),
        (Gated("gru", layers=2), Past()),
        (Gated("gru"), Past(directions=2)),
        (Gated("gru"), Past(single_step=True)),
    ):
        with pytest.raises(NotImplementedError):
            kernel.kernel_matrix(domain, **operands)


def test_dropout_acts_between_layers_only() -> None:
    layers = nn.LSTM(4, 6, num_layers=2).double()
    operands = {
        "input": torch.randn(5, 3, 4, dtype=torch.float64),
        "hidden": [torch.zeros(2, 3, 6, dtype=torch.float64)] * 2,
        "weights": list(layers._flat_weights),
    }
    plain = Gated(layers=2).evaluate(Past(), **operands)
    dropped = Gated(layers=2, dropout=0.5, training=True).evaluate(Past(), **operands)
    torch.testing.assert_close(dropped[1][0], plain[1][0])
    assert not torch.equal(dropped[1][1], plain[1][1])


def _meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def test_work_of_a_sequence() -> None:
    """A two-layer bidirectional LSTM with projection: 2·T·B flops for each entry of each matrix."""
    layers = nn.LSTM(4, 6, num_layers=2, bidirectional=True, proj_size=3)
    kernel = Gated(layers=2, projection=True)
    weights = [_meta(*weight.shape) for weight in layers._flat_weights]
    hidden = [_meta(4, 2, 3), _meta(4, 2, 6)]
    outputs = (_meta(7, 2, 6), *hidden)
    work = kernel.work(Past(directions=2), {"input": _meta(7, 2, 4), "hidden": hidden, "weights": weights}, outputs)
    matrices = 2 * (24 * (4 + 3) + 3 * 6) + 2 * (24 * (6 + 3) + 3 * 6)
    assert work.flops == 7 * 2 * (2 * matrices + 33 * 6 * 4)
    tensors = [_meta(7, 2, 4), *hidden, *weights, *outputs]
    assert work.bytes == 4 * sum(tensor.numel() for tensor in tensors)


def test_work_of_a_step() -> None:
    operands = {"input": _meta(3, 4), "hidden": _meta(3, 5), "w_ih": _meta(15, 4), "w_hh": _meta(15, 5)}
    work = Gated("gru", bias=False).work(Past(single_step=True), operands, (_meta(3, 5),))
    assert work.flops == 3 * (2 * 15 * (4 + 5) + 23 * 5)


def test_description() -> None:
    assert Gated().describe() == "gated"
    assert Gated("gru", layers=2, batch_first=True).describe() == "gated(cell=gru, layers=2, batch_first)"


@pytest.mark.parametrize("settings", [{"cell": "mgu"}, {"cell": "gru", "projection": True}, {"dropout": 0.5}], ids=str)
def test_contradictions_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Gated(**settings)
