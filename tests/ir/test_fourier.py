"""The Fourier transform against its conformance suite."""

import pytest
import torch

from itnet_compiler.ir.domain import Grid
from itnet_compiler.ir.fourier import TRANSFORMS, Fourier
from tests.conformance import check_case, conformance_cases


@pytest.mark.parametrize("case", conformance_cases(Fourier), ids=str)
def test_conformance(case):
    check_case(case)


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("length", [1, 6, 7])
def test_definition_of_complex_input(transform, length):
    x = torch.randn(3, 5, dtype=torch.complex128)
    x = x.real if transform == "rfft" else x
    value = Fourier(transform, (-1,)).evaluate(Grid(1), input=x, lengths=[length])
    torch.testing.assert_close(value, getattr(torch.fft, transform)(x, length))
