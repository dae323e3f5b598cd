"""Stencil against its conformance suite."""

import pytest

from itnet_compiler.ir.stencil import Stencil
from tests.conformance import check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(Stencil), ids=str)
def test_conformance(case):
    check_case(case)
