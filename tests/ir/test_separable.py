"""Linear attention against its conformance suite."""

import pytest

from itnet_compiler.ir.separable import Separable
from tests.conformance import check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(Separable), ids=str)
def test_conformance(case):
    check_case(case)
