"""A learned matrix over positions against its conformance suite."""

import pytest

from itnet_compiler.ir.mixing import Mixing
from tests.conformance import check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(Mixing), ids=str)
def test_conformance(case):
    check_case(case)
