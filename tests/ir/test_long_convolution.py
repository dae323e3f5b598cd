"""Convolution with long filters against its conformance suite."""

import pytest
import torch

from itnet_compiler.ir.domain import Past
from itnet_compiler.ir.long_convolution import LongConvolution
from tests.conformance import check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(LongConvolution), ids=str)
def test_conformance(case):
    check_case(case)


def test_causal_is_a_plain_convolution():
    u, k = torch.randn(2, 3, 9, dtype=torch.float64), torch.randn(3, 9, dtype=torch.float64)
    value = LongConvolution(causal=True).evaluate(Past(), input=u, filter=k)
    padded = torch.nn.functional.pad(u, (8, 0))
    torch.testing.assert_close(value, torch.conv1d(padded, k.flip(-1).unsqueeze(1), groups=3))


def test_a_circle_commutes_with_turning():
    kernel = LongConvolution()
    u, k = torch.randn(2, 9, dtype=torch.float64), torch.randn(9, dtype=torch.float64)
    turned, value = (kernel.evaluate(Past(), input=x, filter=k, period=[9]) for x in (u.roll(2, -1), u))
    torch.testing.assert_close(turned, value.roll(2, -1))
