import pytest
from itnet_compiler.ir.stationary import Stationary
from tests.conformance import check_case, conformance_cases
@pytest.mark.parametrize("case", conformance_cases(Stationary), ids=str)
def test_conformance(case): check_case(case)
