import pytest
import torch
from torch import nn
from torch.nn import functional as F

from itnet_compiler.ir.domain import Window
from itnet_compiler.ir.stationary import Stationary
from itnet_compiler.passes.rules.convolution import convolution, transposed_convolution
from tests.passes.regions import captured, check_region, propose_one, refusals

# torch says this once in a process, of the original and the unified model alike.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")

SHAPES = {1: (2, 4, 17), 2: (2, 4, 9, 11), 3: (2, 4, 5, 7, 6)}
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
OPTIONS = {
    "plain": {"kernel_size": 3},
    "padded": {"kernel_size": 3, "padding": 1, "bias": False},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "grouped, dilated": {"kernel_size": 2, "dilation": 2, "groups": 2},
    "depthwise": {"kernel_size": 3, "groups": 4, "padding": 1},
    "pointwise": {"kernel_size": 1},
    "valid": {"kernel_size": 4, "padding": "valid"},
    "same, odd": {"kernel_size": 3, "padding": "same", "dilation": 2},
    "same, even": {"kernel_size": 4, "padding": "same"},
    "circular": {"kernel_size": 3, "padding": 2, "padding_mode": "circular"},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect", "stride": 2},
    "replicate, same, even": {"kernel_size": 4, "padding": "same", "padding_mode": "replicate"},
}


class Weighted(nn.Module):
    """A function of the input and a weight of fixed shape."""

    def __init__(self, function, *shape):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.randn(shape))

    def forward(self, x):
        return self.function(x, self.weight)


class TwoInputs(nn.Module):
    """A convolution whose weight is an input, of any size."""

    def forward(self, x, weight):
        return F.conv1d(x, weight)


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("name", OPTIONS)
def test_every_convolution(spatial, name):
    torch.manual_seed(0)
    options = OPTIONS[name]
    x = torch.randn(SHAPES[spatial])
    graph = captured(CONVOLUTIONS[spatial](4, 8, **options), x)
    proposal = propose_one(graph, convolution)
    assert proposal.spec.origin == f"conv{spatial}d"
    assert proposal.spec.kernel == Stationary(groups=options.get("groups", 1))
    assert proposal.spec.domain.size == (options["kernel_size"],) * spatial
    assert proposal.spec.domain.boundary == options.get("padding_mode", "zeros")
    assert proposal.spec.operands == ("input", "weight", "bias")[: 3 if options.get("bias", True) else 2]
    check_region(graph, proposal, x)


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 2, "stride": 2},
        {"kernel_size": 3, "stride": 2, "padding": 1, "output_padding": 1, "groups": 2},
        {"kernel_size": 4, "stride": 3, "padding": 2, "dilation": 2, "output_padding": 2, "bias": False},
    ],
    ids=["upsampling", "grouped", "everything"],
)
def test_every_transposed_convolution(spatial, options):
    torch.manual_seed(0)
    x = torch.randn(SHAPES[spatial])
    graph = captured(TRANSPOSED[spatial](4, 8, **options), x)
    proposal = propose_one(graph, transposed_convolution)
    assert proposal.spec.domain.transposed
    check_region(graph, proposal, x)


def test_windows_are_read_axis_by_axis():
    module = nn.Conv2d(3, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2))
    x = torch.randn(2, 3, 8, 9)
    graph = captured(module, x)
    proposal = propose_one(graph, convolution)
    assert proposal.spec.domain == Window((3, 2), (2, 1), ((1, 1), (0, 0)), (1, 2))
    assert proposal.spec.domain.describe() == "window[3,2] stride[2,1] pad[1,0] dilation[1,2]"
    check_region(graph, proposal, x)


@pytest.mark.parametrize(
    ("pad", "boundary"), [((1, 2, 0, 3), "circular"), ((2, 0, 1, 1), "reflect"), ((0, 0, 2, 1), "replicate")]
)
def test_the_pad_before_becomes_the_boundary(pad, boundary):
    x = torch.randn(2, 3, 6, 7)
    graph = captured(Weighted(lambda x, w: F.conv2d(F.pad(x, pad, mode=boundary), w), 5, 3, 2, 3), x)
    proposal = propose_one(graph, convolution)
    left, right, top, bottom = pad
    assert len(proposal.region) == 2
    assert proposal.spec.domain == Window((2, 3), (1, 1), ((top, bottom), (left, right)), (1, 1), boundary)
    check_region(graph, proposal, x)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, w: F.conv1d(F.pad(x, (1, 2)), w),
        lambda x, w: F.conv1d(F.pad(x, (1, 2), value=1.5), w),
        lambda x, w: F.conv1d(F.pad(x, (1, 1), mode="reflect"), w, padding=1),
        lambda x, w: (lambda padded: (F.conv1d(padded, w), padded))(F.pad(x, (1, 1), mode="circular")),
        lambda x, w: F.conv1d(F.pad(x, (1, -1), mode="replicate"), w),
    ],
    ids=["zeros", "constant", "padded twice", "used twice", "cropped"],
)
def test_a_pad_that_is_no_boundary_stays(function):
    x = torch.randn(2, 3, 9)
    graph = captured(Weighted(function, 4, 3, 3), x)
    proposal = propose_one(graph, convolution)
    assert len(proposal.region) == 1
    assert proposal.spec.domain.boundary == "zeros"
    check_region(graph, proposal, x)


@pytest.mark.parametrize("rule", [convolution, transposed_convolution])
def test_without_a_batch_axis(rule):
    module = nn.Conv2d(3, 5, 3, padding="same") if rule is convolution else nn.ConvTranspose2d(3, 5, 3, stride=2)
    x = torch.randn(3, 6, 7)
    graph = captured(module, x)
    check_region(graph, propose_one(graph, rule), x)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 1, 63, 3), (7, 1, 1, 9)])
def test_hostile_sizes(shape):
    x = torch.randn(shape)
    graph = captured(nn.Conv2d(1, 1, 3, padding=1), x, dynamic=False)
    check_region(graph, propose_one(graph, convolution), x)


def test_a_batch_of_none():
    graph = captured(nn.Conv2d(3, 4, 3, padding=1), torch.randn(0, 3, 5, 6), dynamic=False)
    proposal = propose_one(graph, convolution)
    operands = {"input": torch.randn(0, 3, 5, 6), "weight": torch.randn(4, 3, 3, 3), "bias": torch.randn(4)}
    assert proposal.spec.evaluate(**operands).shape == (0, 4, 5, 6)


def test_bfloat16_runs_the_same_kernel():
    x = torch.randn(2, 4, 9, 8, dtype=torch.bfloat16)
    graph = captured(nn.Conv2d(4, 6, 3, padding=1, groups=2).bfloat16(), x)
    check_region(graph, propose_one(graph, convolution), x, tolerance=2e-2)


def test_channels_last_runs_the_same_kernel():
    x = torch.randn(2, 4, 9, 8).to(memory_format=torch.channels_last)
    graph = captured(nn.Conv2d(4, 6, 3, padding=1).to(memory_format=torch.channels_last), x)
    check_region(graph, propose_one(graph, convolution), x)


def test_run_time_structure_is_refused():
    x = torch.randn(3, 3, 9, 9)
    graph = captured(Weighted(lambda x, w: F.conv2d(x, w, stride=x.shape[0] - 1), 4, 3, 3, 3), x)
    assert refusals(graph, convolution) == ["stride is computed at run time"]
    graph = captured(Weighted(lambda x, w: F.conv2d(x, w, padding=x.shape[0]), 4, 3, 3, 3), x)
    assert refusals(graph, convolution) == ["padding is computed at run time"]


def test_a_window_of_run_time_size_is_refused():
    graph = captured(TwoInputs(), torch.randn(2, 3, 9), torch.randn(4, 3, 5))
    assert refusals(graph, convolution) == ["window size is computed at run time"]


def test_a_weight_computed_at_run_time_is_an_operand():
    x, weight = torch.randn(2, 3, 9), torch.randn(4, 3, 5)
    graph = captured(TwoInputs(), x, weight, dynamic=False)
    check_region(graph, propose_one(graph, convolution), x, weight)


def test_complex_numbers_are_refused():
    x, weight = torch.randn(2, 3, 9, dtype=torch.complex64), torch.randn(4, 3, 3, dtype=torch.complex64)
    (reason,) = refusals(captured(TwoInputs(), x, weight, dynamic=False), convolution)
    assert "complex64, not real floating-point" in reason
