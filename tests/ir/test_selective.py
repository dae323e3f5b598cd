"""The selective scan of Mamba."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.selective import Selective
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import check_case, conformance_cases, relative_error


@pytest.mark.parametrize("case", conformance_cases(Selective, "scan"), ids=str)
def test_conformance(case):
    check_case(case)


@pytest.mark.parametrize("lowering", ["scan", "reference"])
def test_a_sequence_in_pieces_is_the_whole(lowering):
    kernel = Selective(softplus=True, returns_state=True)
    sample = kernel._sample(2, 3, 20, 4, ("input", "delta", "A", "B", "C", "D", "initial"))
    operands = sample.operands(torch.float64, torch.Generator().manual_seed(0))
    run = find_lowering(lowering).build(sample.spec).function
    whole, last = run(**operands)
    state, pieces = operands["initial"], []
    for start, stop in ((0, 1), (1, 8), (8, 20)):
        cut = {role: operands[role][..., start:stop] for role in ("input", "delta", "B", "C")}
        piece, state = run(**(operands | cut | {"initial": state}))
        pieces.append(piece)
    assert relative_error(torch.cat(pieces, -1), whole) <= 1e-14
    assert relative_error(state, last) <= 1e-14


def test_half_precision_keeps_the_state_in_float32():
    """A is float32 in the models; y comes in the dtype of the input."""
    kernel = Selective(returns_state=True)
    operands = kernel._sample(2, 3, 9, 4).operands(torch.bfloat16, torch.Generator().manual_seed(0))
    operands["A"] = operands["A"].float()
    run = find_lowering("scan").build(kernel._sample(2, 3, 9, 4).spec).function
    for y, last in (run(**operands), kernel.evaluate(Past(), **operands)):
        assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
