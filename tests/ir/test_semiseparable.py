"""Diagonal linear recurrences, and the integrals that they are equal to."""

from __future__ import annotations

import pytest
import torch

from itnet_compiler.ir.domain import Past, Window
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.matrix_state import MatrixState
from itnet_compiler.ir.selective import Selective
from itnet_compiler.ir.semiseparable import Diagonal, segment_products
from itnet_compiler.ir.stationary import Stationary
from itnet_compiler.lowering.base import default_lowering, find_lowering
from tests.conformance import check_case, conformance_cases, relative_error


@pytest.mark.parametrize("case", conformance_cases(Diagonal, "scan"), ids=str)
def test_conformance(case):
    check_case(case)


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def test_a_recurrence_that_does_not_change_is_a_convolution_with_its_impulse_response():
    """S4D (arXiv:2206.11893): x_t goes into N states, C takes them out; both modes are one integral."""
    channels, states, time = 3, 4, 29
    decay = torch.polar(torch.sigmoid(_random(channels, states)), _random(channels, states))
    B = torch.view_as_complex(_random(channels, states, 2))
    C = torch.view_as_complex(_random(states, channels, 2)).T
    x = _random(time, 2, channels)
    kernel = Diagonal(constant=True)
    h, _ = kernel.evaluate(Past(), decay=decay, input=x[..., None] * B)
    recurrent = (h * C).sum(-1).real

    response = (kernel.impulse_response(decay, time) * B * C).sum(-1).real  # [T, channels]
    window = Window((time,), (1,), padding=((time - 1, 0),), dilation=(1,))
    weight = response.flip(0).T[:, None, :]
    convolved = Stationary(groups=channels).evaluate(window, input=x.permute(1, 2, 0), weight=weight)
    assert relative_error(convolved.permute(2, 0, 1), recurrent) <= 1e-13


def test_the_kernel_of_a_constant_decay_depends_on_the_distance_alone():
    matrix = Diagonal(constant=True).kernel_matrix(Past(), decay=torch.sigmoid(_random(3)), input=_random(8, 3))
    for offset in range(8):
        diagonal = matrix.diagonal(-offset, -2, -1)
        torch.testing.assert_close(diagonal, diagonal[..., :1].expand_as(diagonal), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("kernel", "reason"),
    [
        (Diagonal(), "its decay changes with time"),
        (Selective(), "is not a diagonal linear recurrence"),
        (MatrixState(), "is not a diagonal linear recurrence"),
    ],
    ids=str,
)
def test_fft_says_why_not(kernel, reason):
    support = find_lowering("fft").supports(Spec(kernel, Past(), "recurrence", ("input",)))
    assert not support.ok
    assert reason in support.reasons[0]


def test_scan_is_the_default_of_the_family_and_of_no_other():
    for kernel in (Diagonal(), Selective(), MatrixState()):
        assert default_lowering(Spec(kernel, Past(), "recurrence", ("input",))).name == "scan"
    window = Window((3,), (1,), padding=((1, 1),), dilation=(1,))
    convolution = Spec(Stationary(), window, "conv1d", ("input", "weight"))
    assert default_lowering(convolution).name == "library"
    assert not find_lowering("scan").supports(convolution).ok


def test_products_over_segments_need_no_logarithm():
    """A decay of 0 forgets, a negative one alternates; differences of logarithms would give NaN."""
    a = torch.tensor([0.5, 0.0, -2.0, 3.0], dtype=torch.float64)
    expected = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0], [0, -2, 1, 0], [0, -6, 3, 1]], dtype=torch.float64)
    assert torch.equal(segment_products(a), expected)


def test_a_decay_in_single_precision_leaves_half_precision_as_it_is():
    spec = Spec(Diagonal(constant=True), Past(), "linear recurrence", ("decay", "input", "initial"))
    decay, source, start = torch.full((1,), 0.995), torch.rand(200, 3).bfloat16(), torch.zeros(3).bfloat16()
    operands = {"decay": decay, "input": source, "initial": start}
    exact, _ = spec.evaluate(**{role: value.double() for role, value in operands.items()})
    for method in ("scan", "fft", "reference"):
        states, last = find_lowering(method).build(spec).function(**operands)
        assert states.dtype == last.dtype == torch.bfloat16, method
        torch.testing.assert_close(states.double(), exact, rtol=0.01, atol=0.01)
