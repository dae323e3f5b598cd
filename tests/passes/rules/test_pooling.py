import pytest
import torch
from torch import nn
from torch.nn import functional as F

from itnet_compiler.ir.dense import Dense
from itnet_compiler.ir.domain import Grid, Window
from itnet_compiler.ir.stationary import Stationary
from itnet_compiler.lowering.base import find_lowering
from itnet_compiler.passes.match import op_name
from itnet_compiler.passes.rules.pooling import (
    adaptive_pooling,
    average_pooling,
    fractional_max_pooling,
    max_pooling,
    max_unpooling,
)
from itnet_compiler.passes.verify import Verifier
from tests.passes.regions import captured, check_region, propose_one, refusals

SHAPES = {1: (2, 3, 17), 2: (2, 3, 9, 11), 3: (2, 3, 5, 7, 6)}
SPATIAL = pytest.mark.parametrize("spatial", [1, 2, 3])


class Function(nn.Module):
    """A function of one input as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def pool(kind, spatial):
    return getattr(F, f"{kind}_pool{spatial}d")


def check_tuple(graph, proposal, x):
    """Values and positions: the library's bit by bit, the definition's the same positions."""
    assert Verifier().check(proposal, find_lowering("library").build(proposal.spec)).status == "verified"
    (anchor,) = proposal.region
    expected = anchor.target(x, *anchor.args[1:], **anchor.kwargs)
    for name in ("library", "reference"):
        values, positions = find_lowering(name).build(proposal.spec).function(input=x)
        torch.testing.assert_close(values, expected[0], rtol=0, atol=0)
        assert torch.equal(positions, expected[1])


@SPATIAL
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": 2, "stride": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    ],
    ids=["plain", "overlapping", "ceil", "without padding"],
)
def test_every_average_pooling(spatial, options):
    x = torch.randn(SHAPES[spatial])
    graph = captured(Function(lambda x: pool("avg", spatial)(x, **options)), x)
    proposal = propose_one(graph, average_pooling)
    assert proposal.spec.origin == f"avg_pool{spatial}d"
    assert proposal.spec.kernel == Stationary(
        weights="uniform", count_include_pad=options.get("count_include_pad", True)
    )
    assert proposal.spec.domain.stride == (options.get("stride", options["kernel_size"]),) * spatial
    check_region(graph, proposal, x)


def test_a_divisor_is_kept():
    x = torch.randn(2, 3, 9, 11)
    graph = captured(nn.AvgPool2d((3, 2), (2, 1), (1, 0), divisor_override=5), x)
    proposal = propose_one(graph, average_pooling)
    assert proposal.spec.kernel == Stationary(weights="uniform", divisor=5)
    assert proposal.spec.domain == Window((3, 2), (2, 1), ((1, 1), (0, 0)), (1, 1))
    check_region(graph, proposal, x)


@SPATIAL
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
        {"kernel_size": 2, "stride": 1, "dilation": 3},
    ],
    ids=["plain", "ceil", "dilated"],
)
@pytest.mark.parametrize("indices", [False, True])
def test_every_max_pooling(spatial, options, indices):
    x = torch.randn(SHAPES[spatial])
    graph = captured(Function(lambda x: pool("max", spatial)(x, **options, return_indices=indices)), x)
    proposal = propose_one(graph, max_pooling)
    assert proposal.spec.kernel == Stationary(weights="uniform", maximum=True, returns_indices=indices)
    assert op_name(proposal.region[0]) == f"aten.max_pool{spatial}d{'_with_indices' if indices else ''}.default"
    if indices:
        check_tuple(graph, proposal, x)
    else:
        check_region(graph, proposal, x)


@pytest.mark.parametrize(("kind", "rule"), [("avg", average_pooling), ("max", max_pooling)])
def test_without_a_batch_axis(kind, rule):
    x = torch.randn(3, 9, 11)
    graph = captured(Function(lambda x: pool(kind, 2)(x, 3, 2, 1)), x)
    check_region(graph, propose_one(graph, rule), x)


def test_ties_and_infinities_take_the_first_position():
    x = torch.tensor([[[2.0, 2.0, 1.0, 2.0], [-torch.inf] * 4]])
    graph = captured(nn.MaxPool1d(2, stride=1, padding=1, return_indices=True), x)
    check_tuple(graph, propose_one(graph, max_pooling), x)


def test_only_the_average_of_lp_pooling_is_an_integral():
    x = torch.randn(2, 3, 9, 11)
    graph = captured(nn.LPPool2d(2, 3, stride=2), x)
    proposal = propose_one(graph, average_pooling)
    assert len(proposal.region) == 1
    check_region(graph, proposal, x)


@SPATIAL
@pytest.mark.parametrize("size", [1, 3, 8])
def test_every_adaptive_average_pooling(spatial, size):
    x = torch.randn(SHAPES[spatial])
    graph = captured(Function(lambda x: pool("adaptive_avg", spatial)(x, size)), x)
    proposal = propose_one(graph, adaptive_pooling)
    assert proposal.spec.domain == Grid(spatial)
    assert proposal.spec.kernel == Dense("adaptive", (size,) * spatial)
    assert proposal.spec.origin == f"adaptive_avg_pool{spatial}d"
    check_region(graph, proposal, x)


@SPATIAL
def test_every_adaptive_max_pooling_returns_positions_too(spatial):
    x = torch.randn(SHAPES[spatial])
    graph = captured(Function(lambda x: pool("adaptive_max", spatial)(x, 4)), x)
    proposal = propose_one(graph, adaptive_pooling)
    assert proposal.spec.kernel == Dense("adaptive", (4,) * spatial, maximum=True, returns_indices=True)
    check_tuple(graph, proposal, x)


def test_a_size_known_at_run_time_is_an_operand():
    x = torch.randn(2, 3, 9, 11)
    graph = captured(Function(lambda x: F.adaptive_avg_pool2d(x, (2 * x.shape[3], 4))), x)
    proposal = propose_one(graph, adaptive_pooling)
    assert proposal.spec.operands == ("input", "output_size")
    assert proposal.operands["output_size"][1] == 4
    assert proposal.spec.kernel.output_size is None
    check_region(graph, proposal, x)


def test_area_interpolation_is_adaptive_average_pooling():
    x = torch.randn(2, 3, 9, 11)
    graph = captured(Function(lambda x: F.interpolate(x, size=(4, 5), mode="area")), x)
    check_region(graph, propose_one(graph, adaptive_pooling), x)


@pytest.mark.parametrize(
    ("function", "rule", "reason"),
    [
        (lambda x: F.fractional_max_pool2d(x, 2, output_size=3), fractional_max_pooling, "drawn at random"),
        (
            lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
            max_unpooling,
            "known only at run time",
        ),
        (lambda x: F.max_pool2d((4 * x).int(), 2), max_pooling, "not real floating-point"),
    ],
)
def test_refusals_say_why(function, rule, reason):
    (found,) = refusals(captured(Function(function), torch.randn(2, 3, 8, 10)), rule)
    assert reason in found


@pytest.mark.parametrize(
    ("position", "what"), [(1, "window size"), (2, "stride"), (3, "padding"), (4, "dilation"), (5, "ceil_mode")]
)
def test_attributes_computed_at_run_time_are_refused(position, what):
    """An export by torch 2.13 makes constants of them; another version may not."""
    graph = captured(nn.MaxPool2d(4, 2, 2, 3, ceil_mode=True), torch.randn(2, 3, 19, 20))
    (node,) = [node for node in graph.graph.nodes if "max_pool2d" in node.name]
    node.update_arg(position, node.args[0] if position == 5 else [2, node.args[0]])
    assert refusals(graph, max_pooling) == [f"{what} is computed at run time"]


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 63, 1, 7), (7, 1, 63, 1)])
@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), average_pooling),
        (lambda x: F.max_pool2d(x, 3, 2, 1), max_pooling),
        (lambda x: F.adaptive_avg_pool2d(x, (7, 2)), adaptive_pooling),
    ],
)
def test_hostile_sizes(shape, function, rule):
    x = torch.randn(shape)
    graph = captured(Function(function), x, dynamic=False)
    check_region(graph, propose_one(graph, rule), x)
