"""The tiled lowering against the dense definitions."""

from __future__ import annotations

import pytest

from itnet_compiler.ir.mlp import Mlp
from itnet_compiler.ir.pairwise import Pairwise
from tests.conformance import Case, check_case, conformance_cases

CASES = [case for family in (Mlp, Pairwise) for case in conformance_cases(family, lowering="tiled")]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)
