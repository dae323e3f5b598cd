"""Fold against its conformance suite."""

import pytest

from itnet_compiler.ir.fold import Fold
from tests.conformance import check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(Fold), ids=str)
def test_conformance(case):
    check_case(case)
