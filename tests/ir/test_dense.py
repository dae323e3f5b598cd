import pytest
from itnet_compiler.ir.dense import Dense
from tests.conformance import check_case, conformance_cases
@pytest.mark.parametrize("case", conformance_cases(Dense), ids=str)
def test_conformance(case): check_case(case)
