import pytest
import torch
from torch import nn
from torch.nn import functional as F

from itnet_compiler.ir.dense import Dense
from itnet_compiler.ir.domain import Grid
from itnet_compiler.passes.rules.interpolation import interpolation
from tests.passes.regions import captured, check_region, propose_one, refusals

SHAPES = {1: (2, 3, 11), 2: (2, 3, 7, 9), 3: (2, 3, 5, 4, 7)}
MODES = {
    1: ("nearest", "nearest-exact", "linear"),
    2: ("nearest", "nearest-exact", "bilinear", "bicubic"),
    3: ("nearest", "nearest-exact", "trilinear"),
}
CASES = [(spatial, mode) for spatial, modes in MODES.items() for mode in modes]
WEIGHTS = {"bilinear": "linear", "trilinear": "linear", "bicubic": "cubic"}


class Interpolate(nn.Module):
    """``interpolate`` with options that may depend on the input."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, x):
        found = {name: value(x) if callable(value) else value for name, value in self.options.items()}
        return F.interpolate(x, **found)


@pytest.mark.parametrize(("spatial", "mode"), CASES)
def test_to_a_size(spatial, mode):
    x = torch.randn(SHAPES[spatial])
    graph = captured(Interpolate(size=(5, 8, 6)[:spatial], mode=mode), x)
    proposal = propose_one(graph, interpolation)
    assert proposal.spec.domain == Grid(spatial)
    assert proposal.spec.kernel == Dense(WEIGHTS.get(mode, mode), (5, 8, 6)[:spatial])
    assert proposal.spec.origin == "interpolate"
    check_region(graph, proposal, x)


@pytest.mark.parametrize(("spatial", "mode"), CASES)
def test_by_scales(spatial, mode):
    x = torch.randn(SHAPES[spatial])
    graph = captured(Interpolate(scale_factor=(2.5, 0.6, 2.0)[:spatial], mode=mode), x)
    proposal = propose_one(graph, interpolation)
    assert proposal.spec.kernel == Dense(WEIGHTS.get(mode, mode), scales=(2.5, 0.6, 2.0)[:spatial])
    check_region(graph, proposal, x)


@pytest.mark.parametrize(("spatial", "mode"), CASES)
def test_a_size_known_at_run_time_is_an_operand(spatial, mode):
    x = torch.randn(SHAPES[spatial])
    sizes = Interpolate(size=lambda x: [2 * x.shape[2], 4, 3][:spatial], mode=mode)
    scales = Interpolate(scale_factor=1.5, recompute_scale_factor=True, mode=mode)
    for module in (sizes, scales):
        graph = captured(module, x)
        proposal = propose_one(graph, interpolation)
        assert proposal.spec.operands == ("input", "output_size")
        assert proposal.spec.kernel == Dense(WEIGHTS.get(mode, mode))
        check_region(graph, proposal, x)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("antialias", [False, True])
def test_aligned_corners_and_antialias(mode, aligned, antialias):
    x = torch.randn(2, 3, 13, 9)
    graph = captured(Interpolate(size=(4, 12), mode=mode, align_corners=aligned, antialias=antialias), x)
    proposal = propose_one(graph, interpolation)
    kernel = Dense(WEIGHTS[mode], (4, 12), align_corners=aligned, antialias=antialias)
    assert proposal.spec.kernel == kernel
    check_region(graph, proposal, x)


@pytest.mark.parametrize(
    "module",
    [nn.Upsample(scale_factor=2), nn.Upsample((9, 5), mode="bicubic"), nn.UpsamplingBilinear2d(scale_factor=3)],
    ids=["nearest", "bicubic", "bilinear"],
)
def test_upsampling_modules(module):
    x = torch.randn(2, 3, 7, 9)
    graph = captured(module, x)
    check_region(graph, propose_one(graph, interpolation), x)


def test_one_scale_for_all_axes():
    x = torch.randn(2, 3, 7, 9)
    proposal = propose_one(captured(Interpolate(scale_factor=2), x), interpolation)
    assert proposal.spec.kernel == Dense("nearest", scales=(2.0, 2.0))
    assert proposal.spec.describe() == "over grid[2d], kernel dense(weights=nearest, scales=(2.0,2.0))"


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 63, 1, 7), (7, 1, 63, 1)])
@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
def test_hostile_sizes(shape, mode):
    x = torch.randn(shape)
    graph = captured(Interpolate(size=(7, 3), mode=mode), x, dynamic=False)
    check_region(graph, propose_one(graph, interpolation), x)


def test_a_scale_computed_at_run_time_is_refused():
    """An export by torch 2.13 makes constants of them; another version may not."""
    graph = captured(Interpolate(scale_factor=2.0, mode="bilinear"), torch.randn(2, 3, 7, 9))
    (node,) = [node for node in graph.graph.nodes if "upsample" in node.name]
    node.update_arg(3, [node.args[0], 2.0])
    assert refusals(graph, interpolation) == ["the scale factor is computed at run time"]


def test_images_of_bytes_are_refused():
    x = torch.zeros(2, 3, 7, 9, dtype=torch.uint8)
    (reason,) = refusals(captured(Interpolate(scale_factor=2.0), x), interpolation)
    assert "uint8, not real floating-point" in reason
