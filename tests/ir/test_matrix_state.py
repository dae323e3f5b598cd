"""Recurrences with a matrix for a state, and the masked attention that they are."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.matrix_state import MatrixState
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import check_case, conformance_cases, relative_error


@pytest.mark.parametrize("case", conformance_cases(MatrixState, "scan"), ids=str)
def test_conformance(case):
    check_case(case)


def _operands(kernel: MatrixState, time: int) -> dict[str, torch.Tensor]:
    return kernel._sample((2, 3), time, 4, 5).operands(torch.float64, torch.Generator().manual_seed(0))


def test_linear_attention_is_masked_attention_without_softmax():
    operands = _operands(MatrixState(), 17)
    del operands["initial"]
    scores = operands["query"] @ operands["key"].transpose(-1, -2)
    y, _ = MatrixState().evaluate(Past(), **operands)
    assert relative_error(scores.tril() @ operands["value"], y) <= 1e-13


def test_retnet_is_masked_attention_with_powers_of_its_decay():
    """arXiv:2307.08621, equation 5: D[t, s] = γ^(t−s)."""
    operands = _operands(MatrixState("scalar"), 17)
    del operands["initial"]
    gamma = torch.tensor([0.9, 0.5, 0.99], dtype=torch.float64)[:, None, None]
    steps = torch.arange(17.0, dtype=torch.float64)
    powers = (gamma ** (steps[:, None] - steps)).tril()
    scores = operands["query"] @ operands["key"].transpose(-1, -2)
    y, _ = MatrixState("scalar").evaluate(Past(), **(operands | {"decay": gamma.expand(3, 17, 1)}))
    assert relative_error((scores * powers) @ operands["value"], y) <= 1e-13


def test_mamba2_is_masked_attention_with_a_semiseparable_mask():
    """arXiv:2405.21060, equation 16: Y = (L ∘ C Bᵀ) X, L[t, s] = exp(Σ_{s<τ≤t} log a_τ)."""
    operands = _operands(MatrixState("scalar"), 23)
    del operands["initial"]
    sums = operands["decay"][..., 0].log().cumsum(-1)
    mask = torch.exp(sums[..., :, None] - sums[..., None, :]).tril()
    scores = operands["query"] @ operands["key"].transpose(-1, -2)
    y, _ = MatrixState("scalar").evaluate(Past(), **operands)
    assert relative_error((scores * mask) @ operands["value"], y) <= 1e-12


def test_the_delta_rule_replaces_what_a_key_recalls():
    """β = 1 and orthonormal keys: each key recalls the last value written to it."""
    keys = torch.eye(4, dtype=torch.float64)[[0, 1, 0, 2]]
    values = torch.randn(4, 5, dtype=torch.float64)
    _, last = MatrixState(delta=True).evaluate(
        Past(), query=keys, key=keys, value=values, beta=torch.ones(4, 1, dtype=torch.float64)
    )
    expected = torch.stack([values[2], values[1], values[3], torch.zeros(5, dtype=torch.float64)])
    torch.testing.assert_close(last, expected)


@pytest.mark.parametrize("lowering", ["scan", "chunked", "reference"])
@pytest.mark.parametrize("decay", ["none", "scalar", "diagonal"])
def test_a_sequence_in_pieces_is_the_whole(lowering, decay):
    kernel = MatrixState(decay)
    operands = _operands(kernel, 70)
    run = find_lowering(lowering).build(Spec(kernel, Past(), "attention", tuple(operands))).function
    whole, last = run(**operands)
    state, pieces = operands["initial"], []
    for start, stop in ((0, 1), (1, 64), (64, 70)):
        cut = {role: value[..., start:stop, :] for role, value in operands.items() if role != "initial"}
        piece, state = run(**(cut | {"initial": state}))
        pieces.append(piece)
    assert relative_error(torch.cat(pieces, -2), whole) <= 1e-13
    assert relative_error(state, last) <= 1e-13
