"""Sampled against its conformance suite."""

import pytest
import torch

from itnet_compiler.ir.sampled import Sampled
from tests.conformance import check_case, conformance_cases

# In half precision torch rounds the positions too, and an error of 2⁻⁶ there is one of a few percent in the values.
CASES = [case for case in conformance_cases(Sampled) if case.dtype in (torch.float32, torch.float64)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conformance(case):
    check_case(case)


def test_unknown_words_are_refused():
    with pytest.raises(ValueError, match="'area' is none of"):
        Sampled("area")
