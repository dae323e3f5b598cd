import random
from math import gcd

import pytest
import torch
from torch.nn import functional as F

from itnet_compiler.errors import LoweringError
from itnet_compiler.ir.dense import Dense
from itnet_compiler.ir.domain import Grid
from itnet_compiler.ir.kernel import Spec
from itnet_compiler.lowering.base import find_lowering
from tests.conformance import Case, check_case, conformance_cases, relative_error

RANKS = pytest.mark.parametrize("rank", [1, 2, 3])
WEIGHTS = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}
MODES = [
    *((1, mode) for mode in ("nearest", "nearest-exact", "linear")),
    *((2, mode) for mode in ("nearest", "nearest-exact", "bilinear", "bicubic")),
    *((3, mode) for mode in ("nearest", "nearest-exact", "trilinear")),
]


@pytest.mark.parametrize("case", conformance_cases(Dense), ids=str)
def test_conformance(case: Case) -> None:
    check_case(case)


def draw(rng, rank, low, high):
    return tuple(rng.randint(low, high) for _ in range(rank))


def matrix(kernel, extent):
    """The matrix along a single axis."""
    return kernel.kernel_matrix(Grid(1), input=torch.zeros(1, 1, extent, dtype=torch.float64))


# -- Against torch.nn.functional, over random structures ---------------------------------------------------------


@pytest.mark.parametrize(("rank", "mode"), MODES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_random_interpolations(rank, mode, dtype):
    rng, weights = random.Random(rank), WEIGHTS.get(mode, mode)
    most = {1: 40, 2: 15, 3: 7}[rank]
    for _ in range(60):
        grid, options = draw(rng, rank, 1, most), {}
        if weights in ("linear", "cubic"):
            options["align_corners"] = rng.random() < 0.5
            options["antialias"] = rank == 2 and rng.random() < 0.5
        if rng.random() < 0.5:
            scales = tuple(rng.choice([0.3, 0.5, 0.77, 1.0, 1.5, 2.0, 2.5]) for _ in grid)
            grid = tuple(max(n, 4) for n in grid)
            structure, asked = {"scales": scales}, {"scale_factor": scales}
        else:
            size = draw(rng, rank, 1, most)
            structure, asked = {"output_size": size}, {"size": size}
        x = torch.randn(2, 3, *grid, dtype=dtype)
        kernel = Dense(weights, **structure, **options)
        outputs = kernel.output_extents(grid)
        if _torch_is_off(kernel, grid, outputs):
            continue
        expected = F.interpolate(x, mode=mode, **asked, **options)
        assert relative_error(kernel.evaluate(Grid(rank), input=x), expected) < (1e-12 if dtype.itemsize == 8 else 1e-5)


def _torch_is_off(kernel, extents, outputs):
    """Where torch itself does not compute its formula.

    With ``antialias`` and a result of width 1 it reads the wrong strides. ``nearest`` of a whole position is left to
    the rounding of float32, unless the step is exact (see ``test_nearest_of_whole_positions``).
    """
    if kernel.antialias:
        return outputs[-1] == 1
    if not kernel.weights.startswith("nearest") or kernel.scales:
        return False
    shared = [(a, o, gcd(a, o)) for a, o in zip(extents, outputs, strict=True)]
    return any((a % 2 == 0 or common > 1) and (o // common).bit_count() != 1 for a, o, common in shared)


@RANKS
def test_random_adaptive_poolings(rank):
    rng = random.Random(rank)
    average, maximum = getattr(F, f"adaptive_avg_pool{rank}d"), getattr(F, f"adaptive_max_pool{rank}d")
    most = {1: 30, 2: 12, 3: 6}[rank]
    for _ in range(60):
        grid, size = draw(rng, rank, 1, most), draw(rng, rank, 1, most)
        x = torch.randn(*rng.choice([(), (2,)]), 3, *grid, dtype=torch.float64)
        found = Dense("adaptive", size).evaluate(Grid(rank), input=x)
        assert relative_error(found, average(x, size)) < 1e-13
        found = Dense("adaptive", size, maximum=True, returns_indices=True).evaluate(Grid(rank), input=x.round())
        assert relative_error(found, maximum(x.round(), size, return_indices=True)) == 0.0


# -- Facts checked by hand ---------------------------------------------------------------------------------------


def test_adaptive_windows_overlap_where_they_must():
    counts = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1, 1]])
    assert torch.equal(matrix(Dense("adaptive", (3,)), 7), counts.double() / 3)


def test_linear_upsampling_by_two():
    expected = [[1, 0, 0], [0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0.75, 0.25], [0, 0.25, 0.75], [0, 0, 1]]
    assert matrix(Dense("linear", (6,)), 3).tolist() == expected


def test_aligned_corners_keep_the_corners():
    expected = [[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.5, 0.5], [0, 0, 1]]
    assert matrix(Dense("linear", (5,), align_corners=True), 3).tolist() == expected


def test_cubic_weights_half_way():
    row = matrix(Dense("cubic", (8,)), 16)[3]  # position 6.5
    assert row[5:9].tolist() == [-0.09375, 0.59375, 0.59375, -0.09375]
    assert row.count_nonzero() == 4


def test_antialias_is_a_triangle_two_steps_wide():
    row = matrix(Dense("linear", (3,), antialias=True), 12)[1]  # centre 6, support 4
    assert torch.allclose(row[2:10] * 32, torch.tensor([1, 3, 5, 7, 7, 5, 3, 1]).double())
    assert row.count_nonzero() == 8


def test_scales_are_used_as_given():
    """Ten positions times 2.55 are 25, but the step stays 1 / 2.55."""
    x = torch.randn(1, 1, 10, dtype=torch.float64)
    given = Dense("linear", scales=(2.55,)).evaluate(Grid(1), input=x)
    assert given.shape == (1, 1, 25)
    assert relative_error(given, F.interpolate(x, scale_factor=2.55, mode="linear")) < 1e-14
    recomputed = F.interpolate(x, scale_factor=2.55, mode="linear", recompute_scale_factor=True)
    assert relative_error(Dense("linear", (25,)).evaluate(Grid(1), input=x), recomputed) < 1e-14
    assert relative_error(given, recomputed) > 1e-3


@pytest.mark.parametrize("antialias", [False, True])
def test_an_axis_that_keeps_its_size_is_copied(antialias):
    x = torch.randn(1, 2, 10, 7, dtype=torch.float64)
    kernel = Dense("linear", scales=(1.05, 1.1), antialias=antialias)
    assert torch.equal(kernel.evaluate(Grid(2), input=x), x)
    assert torch.equal(F.interpolate(x, scale_factor=(1.05, 1.1), mode="bilinear", antialias=antialias), x)


def test_nearest_of_whole_positions():
    """Position 11 of 23 looks at (11 + ½)·14 / 23 = 7 exactly; torch rounds to 6 in float32."""
    x = torch.arange(14.0)[None, None]
    assert Dense("nearest-exact", (23,)).evaluate(Grid(1), input=x)[0, 0, 11] == 7
    assert F.interpolate(x, size=23, mode="nearest-exact")[0, 0, 11] == 6
    assert F.interpolate(x.double(), size=23, mode="nearest-exact")[0, 0, 11] == 7


@pytest.mark.parametrize("weights", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_miniatures_stay_clear_of_rounding(weights, rank):
    sizes = [Dense(weights, (count,) * rank) for count in range(1, 20)]
    scales = [Dense(weights, scales=(scale,) * rank) for scale in (0.3, 0.7, 1.0, 1.1, 1.25, 1.9, 2.0, 2.1, 3.0, 3.3)]
    for kernel in sizes + scales:
        sample = Spec(kernel, Grid(rank), "interpolate", ("input",)).miniature()
        operands = sample.operands(torch.float64, torch.Generator().manual_seed(0))
        assert torch.equal(
            find_lowering("library").build(sample.spec).function(**operands), sample.spec.evaluate(**operands)
        )


def test_the_miniature_of_a_large_result_is_small():
    sample = Spec(Dense("cubic", (1024, 768)), Grid(2), "interpolate", ("input",)).miniature()
    assert sample.spec.kernel == Dense("cubic", (16, 16))
    assert sample.draws["input"].shape == (2, 3, 19, 14)


def test_reductions():
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    for axes, keepdim in (((2, 3), False), ((-1, -3), True)):
        for options, expected in (({"mean": True}, x.mean), ({}, x.sum), ({"maximum": True}, x.amax)):
            found = Dense("uniform", axes=axes, keepdim=keepdim, **options).evaluate(Grid(2), input=x)
            assert relative_error(found, expected(axes, keepdim)) < 1e-15


# -- What is declared --------------------------------------------------------------------------------------------


def test_properties():
    assert Dense("cubic", (3, 4)).properties(Grid(2)) == {"linear", "normalised"}
    assert Dense("adaptive", (3, 4), maximum=True).properties(Grid(2)) == set()
    assert Dense("uniform", axes=(2,)).properties(Grid(1)) == {"linear", "separable"}
    assert Dense("uniform", axes=(2,), mean=True).properties(Grid(1)) == {"linear", "normalised", "separable"}


@pytest.mark.parametrize(
    ("kernel", "flops"),
    [
        (Dense("nearest", (8, 8)), 0),
        (Dense("linear", (8, 8)), 2 * 4 * 384),
        (Dense("cubic", (8, 8)), 2 * 16 * 384),
        (Dense("linear", (8, 8), antialias=True), 2 * (2 * 2) * (2 * 2) * 384),
        (Dense("adaptive", (8, 8)), 2 * 2 * 384),
        (Dense("uniform", axes=(2, 3), mean=True), 2 * 3 * 256),
    ],
)
def test_work(kernel, flops):
    x, y = torch.empty(2, 3, 16, 16, device="meta"), torch.empty(2, 3, 8, 8, device="meta")
    found = kernel.work(Grid(2), {"input": x}, (y,))
    assert found.flops == flops
    assert found.bytes == 4 * (x.numel() + y.numel())


def test_text():
    kernel = Dense("linear", scales=(2.0, 0.5), align_corners=True)
    assert kernel.describe() == "dense(weights=linear, scales=(2.0,0.5), align_corners)"


def test_impossible_structures():
    with pytest.raises(ValueError, match="none of adaptive"):
        Dense("random")
    with pytest.raises(ValueError, match="needs axes"):
        Dense("uniform")
    with pytest.raises(ValueError, match="not both"):
        Dense("linear", (3,), (0.5,))
    with pytest.raises(ValueError, match="neither"):
        Dense("linear").evaluate(Grid(1), input=torch.zeros(1, 1, 3))
    with pytest.raises(NotImplementedError, match="maximum"):
        Dense("adaptive", (3,), maximum=True).kernel_matrix(Grid(1), input=torch.zeros(1, 1, 3))


# -- The library lowering ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kernel", "rank", "expression"),
    [
        (Dense("adaptive", (1, 1)), 2, "adaptive_avg_pool2d(input, (1, 1))"),
        (Dense("adaptive", (4,), maximum=True), 1, "adaptive_max_pool1d(input, (4,))[0]"),
        (Dense("nearest", scales=(2.0, 2.0)), 2, "upsample_nearest2d(input, None, (2.0, 2.0))"),
        (Dense("cubic", (7, 7), antialias=True), 2, "_upsample_bicubic2d_aa(input, (7, 7), False, None)"),
        (Dense("uniform", axes=(2, 3), keepdim=True, mean=True), 2, "mean(input, (2, 3), True)"),
    ],
)
def test_the_path_that_runs(kernel, rank, expression):
    assert find_lowering("library").build(Spec(kernel, Grid(rank), "layer", ("input",))).expression == expression


def test_what_the_library_cannot_do():
    with pytest.raises(LoweringError, match="cubic over 3 axes"):
        find_lowering("library").build(Spec(Dense("cubic", (3, 3, 3)), Grid(3), "interpolate", ("input",)))
