"""The tiled lowering against the dense definitions."""

from __future__ import annotations

import pytest

from itnet_compiler.ir.dense import Dense
from itnet_compiler.ir.domain import Grid, Keys
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.mlp import Mlp
from itnet_compiler.ir.pairwise import Pairwise
from itnet_compiler.ir.softmax import Softmax
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import Case, check_case, conformance_cases

CASES = [
    case
    for family in (Mlp, Pairwise, Softmax)
    for case in conformance_cases(family, lowering="tiled")
    if find_lowering("tiled").supports(case.sample.spec).ok
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        (Spec(Softmax(dropout=0.1), Keys(), "attention", ("query", "key", "value")), "dropout"),
        (Spec(Softmax(), Keys(), "attention", ("query", "key", "value", "mask")), "mask"),
        (Spec(Dense("uniform", axes=(1,)), Grid(1), "mean", ("input",)), "no pair program computes the Dense kernel"),
        (Spec(Mlp(), Grid(1), "integral transform", ("value",)), "no set of keys"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_it_does_not_run_it_says(spec: Spec, reason: str) -> None:
    found = find_lowering("tiled").supports(spec)
    assert not found.ok
    assert any(reason in text for text in found.reasons)


def test_the_source_of_a_node_is_its_program_in_stages() -> None:
    spec = Pairwise.samples()[0].spec
    text = find_lowering("tiled").build(spec).source
    assert "# of each pair" in text
    assert "tanh" in text
