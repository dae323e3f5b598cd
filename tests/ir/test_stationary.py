import random

import pytest
import torch
from torch.nn import functional as F

from itnet_compiler.errors import LoweringError
from itnet_compiler.ir.domain import Window
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.ir.stationary import Stationary, output_extents
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import Case, check_case, conformance_cases, relative_error

# torch says this once in a process, of the original and the unified model alike.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

RANKS = pytest.mark.parametrize("rank", [1, 2, 3])
POOL = {"weights": "uniform"}
MAX = {"weights": "uniform", "maximum": True}


@pytest.mark.parametrize("case", conformance_cases(Stationary), ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)


def window(size, stride=1, padding=0, dilation=1, **options):
    """A window from numbers per axis, or one for all axes."""
    rank = len(size)

    def spread(value):
        return tuple(value) if isinstance(value, (tuple, list)) else (value,) * rank

    return Window(size, spread(stride), tuple((p, p) for p in spread(padding)), spread(dilation), **options)


def draw(rng, rank, low, high):
    return tuple(rng.randint(low, high) for _ in range(rank))


# -- Against torch.nn.functional, over random structures ---------------------------------------------------------


@RANKS
def test_random_convolutions(rank):
    rng, conv = random.Random(rank), getattr(F, f"conv{rank}d")
    for _ in range(60):
        size, stride, padding, dilation = (draw(rng, rank, *span) for span in ((1, 3), (1, 3), (0, 3), (1, 3)))
        groups = rng.choice([1, 1, 2, 3])
        grid = [d * (k - 1) + 1 + rng.randint(0, 5) for k, d in zip(size, dilation, strict=True)]
        x = torch.randn(*rng.choice([(), (1,), (3,)]), 6, *grid, dtype=torch.float64)
        weight, bias = torch.randn(6, 6 // groups, *size).double(), torch.randn(6).double()
        domain = window(size, stride, padding, dilation)
        found = Stationary(groups=groups).evaluate(domain, input=x, weight=weight, bias=bias)
        assert relative_error(found, conv(x, weight, bias, stride, padding, dilation, groups)) < 1e-13


@RANKS
def test_random_transposed_convolutions(rank):
    rng, conv = random.Random(rank), getattr(F, f"conv_transpose{rank}d")
    for _ in range(60):
        size, stride, dilation = (draw(rng, rank, *span) for span in ((1, 4), (1, 3), (1, 3)))
        padding = [rng.randint(0, d * (k - 1)) for k, d in zip(size, dilation, strict=True)]
        extra = [rng.randint(0, max(s, d) - 1) for s, d in zip(stride, dilation, strict=True)]
        grid, groups = draw(rng, rank, 2, 5), rng.choice([1, 2])
        if min(output_extents(window(size, stride, padding, dilation, transposed=True), grid)) < 1:
            continue
        x = torch.randn(*rng.choice([(), (2,)]), 4, *grid, dtype=torch.float64)
        weight, bias = torch.randn(4, 6 // groups, *size).double(), torch.randn(6).double()
        domain = window(size, stride, padding, dilation, transposed=True, output_padding=tuple(extra))
        found = Stationary(groups=groups).evaluate(domain, input=x, weight=weight, bias=bias)
        assert relative_error(found, conv(x, weight, bias, stride, padding, extra, groups, dilation)) < 1e-13


@RANKS
def test_random_average_poolings(rank):
    rng, pool = random.Random(rank), getattr(F, f"avg_pool{rank}d")
    for _ in range(80):
        size, stride = draw(rng, rank, 1, 4), draw(rng, rank, 1, 4)
        padding, grid = [rng.randint(0, k // 2) for k in size], [k + rng.randint(0, 6) for k in size]
        ceil_mode, count = rng.random() < 0.5, rng.random() < 0.5
        divisor = rng.choice([None, None, 3]) if rank > 1 else None
        x = torch.randn(*rng.choice([(), (2,)]), 3, *grid, dtype=torch.float64)
        expected = pool(x, size, stride, padding, ceil_mode, count, *((divisor,) if rank > 1 else ()))
        kernel = Stationary(**POOL, count_include_pad=count, divisor=divisor)
        found = kernel.evaluate(window(size, stride, padding, ceil_mode=ceil_mode), input=x)
        assert relative_error(found, expected) < 1e-13


@RANKS
def test_random_max_poolings_with_ties(rank):
    rng, pool = random.Random(rank), getattr(F, f"max_pool{rank}d")
    for _ in range(80):
        size, stride, dilation = draw(rng, rank, 1, 3), draw(rng, rank, 1, 3), draw(rng, rank, 1, 2)
        padding = [rng.randint(0, k // 2) for k in size]
        grid = [d * (k - 1) + 1 + rng.randint(0, 5) for k, d in zip(size, dilation, strict=True)]
        ceil_mode = rng.random() < 0.5
        x = torch.randn(*rng.choice([(), (2,)]), 3, *grid, dtype=torch.float64)
        if rng.random() < 0.5:
            x = x.round()
        domain = window(size, stride, padding, dilation, ceil_mode=ceil_mode)
        found = Stationary(**MAX, returns_indices=True).evaluate(domain, input=x)
        expected = pool(x, size, stride, padding, dilation, ceil_mode, return_indices=True)
        assert relative_error(found, expected) == 0.0


@pytest.mark.parametrize("boundary", ["reflect", "replicate", "circular"])
@RANKS
def test_random_boundaries(rank, boundary):
    rng, conv = random.Random(rank), getattr(F, f"conv{rank}d")
    for _ in range(20):
        size, grid = draw(rng, rank, 1, 3), draw(rng, rank, 3, 6)
        pads = [(rng.randint(0, 2), rng.randint(0, 2)) for _ in size]
        x, weight = torch.randn(2, 3, *grid).double(), torch.randn(4, 3, *size).double()
        padded = F.pad(x, [side for pair in reversed(pads) for side in pair], mode=boundary)
        domain = Window(size, (1,) * rank, tuple(pads), (1,) * rank, boundary)
        found = Stationary().evaluate(domain, input=x, weight=weight)
        assert relative_error(found, conv(padded, weight)) < 1e-13


# -- Facts checked by hand ---------------------------------------------------------------------------------------


def test_the_matrix_of_a_convolution_is_a_band():
    weight = torch.tensor([[[1.0, 2.0, 3.0]]])
    matrix = Stationary().kernel_matrix(window((3,), padding=1), input=torch.zeros(1, 1, 4), weight=weight)
    assert matrix.tolist() == [[2, 3, 0, 0], [1, 2, 3, 0], [0, 1, 2, 3], [0, 0, 1, 2]]


def test_the_matrix_wraps_around_on_a_circle():
    weight = torch.tensor([[[1.0, 2.0, 3.0]]])
    domain = window((3,), padding=1, boundary="circular")
    matrix = Stationary().kernel_matrix(domain, input=torch.zeros(1, 1, 4), weight=weight)
    assert matrix.tolist() == [[2, 3, 0, 1], [1, 2, 3, 0], [0, 1, 2, 3], [3, 0, 1, 2]]


def test_transposed_convolution_is_the_transpose():
    weight = torch.randn(4, 3, 3, 2)
    there = window((3, 2), (2, 1), (1, 0))
    back = window((3, 2), (2, 1), (1, 0), transposed=True, output_padding=(1, 0))
    matrix = Stationary().kernel_matrix(there, input=torch.zeros(3, 6, 5), weight=weight)
    transposed = Stationary().kernel_matrix(back, input=torch.zeros(4, 3, 4), weight=weight)
    torch.testing.assert_close(transposed, matrix.T, rtol=0, atol=0)


def test_averages_by_hand():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0]])
    domain = window((2,), 2, 1, ceil_mode=True)  # windows (·,1) (2,3) (4,5), and none that starts in the padding

    def average(**options):
        return Stationary(**POOL, **options).evaluate(domain, input=x).tolist()

    assert average() == [[0.5, 2.5, 4.5]]
    assert average(count_include_pad=False) == [[1.0, 2.5, 4.5]]
    assert average(divisor=4) == [[0.25, 1.25, 2.25]]


def test_a_last_partial_window_counts_what_it_covers():
    x = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    domain = window((3,), 2, ceil_mode=True)
    assert Stationary(**POOL).evaluate(domain, input=x).tolist() == [[2.0, 3.5]]


def test_a_maximum_of_minus_infinity_is_not_the_padding():
    x = torch.full((1, 3), float("-inf"))
    values, positions = Stationary(**MAX, returns_indices=True).evaluate(window((3,), 1, 1), input=x)
    assert values.tolist() == [[float("-inf")] * 3]
    assert positions.tolist() == [[0, 0, 1]]


def test_infinities_outside_the_window_do_not_spread():
    x = torch.tensor([[[1.0, 2.0, float("inf")]]])
    out = Stationary().evaluate(window((2,)), input=x, weight=torch.ones(1, 1, 2))
    assert out.tolist() == [[[3.0, float("inf")]]]


# -- What is declared --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "domain", "expected"),
    [
        (Stationary(), window((3,), padding=1), {"linear", "stationary"}),
        (Stationary(), Window((3,), (1,), ((2, 0),), (1,)), {"linear", "stationary", "causal"}),
        (Stationary(), Window((3,), (1,), ((3, 0),), (2,)), {"linear", "stationary"}),
        (Stationary(), Window((3,), (2,), ((2, 0),), (1,)), {"linear", "stationary"}),
        (Stationary(), window((3,), padding=1, boundary="reflect"), {"linear"}),
        (Stationary(**POOL), window((3, 3)), {"linear", "stationary", "normalised"}),
        (Stationary(**POOL), window((3, 3), padding=1), {"linear", "stationary"}),
        (Stationary(**POOL, count_include_pad=False), window((3, 3), padding=1), {"linear", "normalised"}),
        (Stationary(**POOL, divisor=2), window((3, 3), padding=1), {"linear", "stationary"}),
        (Stationary(**POOL), window((3, 3), ceil_mode=True), {"linear", "normalised"}),
        (Stationary(**MAX), window((3, 3), padding=1), {"stationary"}),
    ],
)
def test_properties(kernel, domain, expected):
    assert kernel.properties(domain) == expected


def test_work_of_the_first_layer_of_resnet():
    meta = {"input": (1, 3, 224, 224), "weight": (64, 3, 7, 7), "bias": (64,)}
    operands = {role: torch.empty(shape, device="meta") for role, shape in meta.items()}
    output = torch.empty(1, 64, 112, 112, device="meta")
    found = Stationary().work(window((7, 7), 2, 3), operands, (output,))
    assert found.flops == 2 * 118_013_952 + output.numel()
    assert found.bytes == 4 * (3 * 224 * 224 + 64 * 3 * 49 + 64 + 64 * 112 * 112)


def test_work_of_other_windows():
    x, y = torch.empty(2, 8, 10, device="meta"), torch.empty(2, 6, 20, device="meta")
    weight = torch.empty(8, 3, 4, device="meta")
    back = window((4,), 2, 1, transposed=True)
    assert Stationary(groups=2).work(back, {"input": x, "weight": weight}, (y,)).flops == 2 * 160 * 3 * 4
    assert Stationary(**POOL).work(window((5,)), {"input": x}, (y,)).flops == 5 * 240


@pytest.mark.parametrize(
    ("taps", "low", "high", "short"),
    [(4096, 4095, 0, (32, (31, 0))), (4096, 2047, 2048, (32, (15, 16))), (101, 50, 50, (33, (16, 16)))],
    ids=["causal", "same, even", "same, odd"],
)
def test_the_miniature_of_a_long_window_is_short(taps, low, high, short):
    domain = Window((taps,), (1,), ((low, high),), (1,))
    found = Stationary().miniature(domain, ("input", "weight")).spec.domain
    assert (*found.size, *found.padding) == short
    assert Stationary().properties(found) == Stationary().properties(domain)


def test_text():
    assert Stationary(groups=4).describe() == "stationary(groups=4)"
    assert Stationary(**MAX, returns_indices=True).describe() == "stationary(weights=uniform, maximum, returns_indices)"


def test_impossible_structures():
    with pytest.raises(ValueError, match="learned or uniform"):
        Stationary(weights="random")
    with pytest.raises(ValueError, match="uniform weights"):
        Stationary(maximum=True)
    domain = window((3,), padding=1, transposed=True, boundary="reflect")
    with pytest.raises(ValueError, match="no boundary rule"):
        Stationary().evaluate(domain, input=torch.zeros(1, 1, 4), weight=torch.zeros(1, 1, 3))
    with pytest.raises(NotImplementedError, match="maximum"):
        Stationary(**MAX).kernel_matrix(window((3,)), input=torch.zeros(1, 4))


# -- The library lowering ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "domain", "expression"),
    [
        (Stationary(), window((3,), 2, 1), "conv1d(input, weight, bias, (2,), (1,), (1,), 1)"),
        (
            Stationary(groups=2),
            Window((4, 3), (1, 1), ((1, 2), (1, 1)), (1, 1)),
            "conv2d(input, weight, bias, (1, 1), 'same', (1, 1), 2)",
        ),
        (
            Stationary(),
            Window((3, 3), (1, 1), ((1, 2), (3, 4)), (1, 1), "reflect"),
            "conv2d(pad(input, (3, 4, 1, 2), 'reflect'), weight, bias, (1, 1), (0, 0), (1, 1), 1)",
        ),
        (
            Stationary(),
            window((2,), 2, transposed=True),
            "conv_transpose1d(input, weight, bias, (2,), (0,), (0,), 1, (1,))",
        ),
    ],
)
def test_the_path_that_runs(kernel, domain, expression):
    spec = Spec(kernel, domain, "conv", ("input", "weight", "bias"))
    assert find_lowering("library").build(spec).expression == expression


@pytest.mark.parametrize(
    ("kernel", "domain", "reason"),
    [
        (Stationary(), Window((2,), (2,), ((0, 1),), (1,), transposed=True), "transposed"),
        (Stationary(**POOL), Window((2,), (2,), ((0, 1),), (1,)), "asymmetric"),
        (Stationary(**POOL), window((2,), dilation=2), "dilated"),
        (Stationary(**POOL, divisor=3), window((2,)), "divisor"),
        (Stationary(**POOL), window((2,), boundary="reflect", ceil_mode=True), "ceil_mode"),
        (Stationary(**MAX, returns_indices=True), window((2,), padding=1, boundary="circular"), "indices"),
    ],
)
def test_what_the_library_cannot_do(kernel, domain, reason):
    with pytest.raises(LoweringError, match=reason):
        find_lowering("library").build(Spec(kernel, domain, "none", ("input",)))
