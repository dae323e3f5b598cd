"""Cumulative sums against their conformance suite."""

import pytest

from itnet_compiler.ir.cumulative import Cumulative
from tests.conformance import check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(Cumulative), ids=str)
def test_conformance(case):
    check_case(case)
