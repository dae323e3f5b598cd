"""Recurrences of a matrix in the layouts of loops."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.arranged_state import ArrangedState
from itnet_compiler.ir.layout import merged, parse
from tests.conformance import check_case, conformance_cases, relative_error

CASES = conformance_cases(ArrangedState, "scan")
CASES += [case for case in conformance_cases(ArrangedState, "chunked") if case.check in ("forward", "gradient")]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case}-{case.lowering}")
def test_conformance(case):
    check_case(case)


@pytest.mark.parametrize("sample", ArrangedState.samples(), ids=lambda sample: sample.spec.describe())
def test_its_formula_is_what_it_computes(sample):
    """As einsum over the labels, step by step."""
    kernel = sample.spec.kernel
    operands = sample.operands(torch.float64, torch.Generator().manual_seed(0))
    lines = kernel.formula()
    assert len(lines) == 3 and all("None" not in line for line in lines)
    labels, sizes = kernel.labels, kernel.extents(operands)
    order = (*labels.batch, *labels.channels, *labels.features)

    def at(role: str, step: int) -> torch.Tensor:
        """One step of an operand, in the axes of the state."""
        own = tuple(label for axis in kernel.layouts[role] for label in axis)
        value = operands[role].reshape([sizes[label] for label in own])
        if "t" in own:
            value, own = value.select(own.index("t"), step), tuple(label for label in own if label != "t")
        value = value.permute([own.index(label) for label in order if label in own])
        return value.reshape([sizes[label] if label in own else 1 for label in order])

    state = torch.zeros([sizes[label] for label in order], dtype=torch.float64)
    state = state + at("initial", 0) if kernel.initial is not None else state
    channels = list(range(len(labels.batch), len(labels.batch) + len(labels.channels)))
    outputs = [state.sum(channels)[None][:0]]
    for step in range(sizes["t"]):
        given = kernel.scale * at("key", step) * at("value", step)
        given = given * at("rate", step) if kernel.rate is not None else given
        state = at("decay", step) * state if kernel.factor is not None else state
        state = (1.0 if kernel.constant is None else kernel.constant) * state + given
        outputs.append((at("query", step) * state).sum(channels)[None])
    found = sample.spec.evaluate(**operands)
    y, last = found if kernel.last is not None else (found, None)
    expected = merged(torch.cat(outputs), ("t", *labels.batch, *labels.features), parse(kernel.output), sizes)
    assert relative_error(y, expected) <= 1e-13
    if last is not None:
        assert relative_error(last, merged(state, order, parse(kernel.last), sizes)) <= 1e-13
