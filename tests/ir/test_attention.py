"""Attention with labelled axes: conformance of the family, layouts, the fused form."""

import pytest

from itnet_compiler.ir.attention import Attention
from tests.conformance import check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(Attention), ids=str)
def test_conformance(case):
    check_case(case)
