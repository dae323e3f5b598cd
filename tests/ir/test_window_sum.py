"""Windows times weights against their conformance suite."""

import pytest

from itnet_compiler.ir.window_sum import WindowSum, WindowSumOwn
from tests.conformance import check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(WindowSum) + conformance_cases(WindowSumOwn), ids=str)
def test_conformance(case):
    check_case(case)
