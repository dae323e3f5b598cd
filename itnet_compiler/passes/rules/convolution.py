"""Rule ``convolution``: conv1d/2d/3d and transposed convolution, with the padding operator before them."""

from __future__ import annotations

from torch.fx import Node

from ...ir.domain import Window
from ...ir.kernel import Spec
from ...ir.stationary import Stationary
from ..match import Match, Proposal, bind, op_name, present, propose, rank, rule, shape_of
from ..window_arguments import constant_ints, require_floating

__all__ = ["convolution", "transposed_convolution"]

# Zero padding stays an operator of its own: the library may add in another order where the convolution pads itself.
_BOUNDARIES = ("circular", "reflect", "replicate")


@rule(
    "convolution",
    *(f"aten.conv{n}d.default" for n in (1, 2, 3)),
    *(f"aten.conv{n}d.padding" for n in (1, 2, 3)),
)
def convolution(node: Node, match: Match) -> Proposal:
    """y[p] = Σ_k W[k] · x[s·p − low + d·k]; a preceding ``pad`` used by nothing else becomes the boundary."""
    given = bind(node)
    source, weight, spatial, size = _operands(match, given)
    stride, dilation = (constant_ints(match, given[name], name, spatial) for name in ("stride", "dilation"))
    if given["padding"] == "same":
        pairs = _same_padding(size, dilation)
    elif given["padding"] == "valid":
        pairs = ((0, 0),) * spatial
    else:
        pairs = tuple((pad, pad) for pad in constant_ints(match, given["padding"], "padding", spatial))
    (groups,) = constant_ints(match, given["groups"], "groups", 1)
    region, boundary = [node], "zeros"
    if not any(low or high for low, high in pairs) and _is_boundary_pad(source, spatial):
        arguments = bind(source)
        boundary, flat = arguments["mode"], arguments["pad"]
        pairs = tuple((flat[2 * axis], flat[2 * axis + 1]) for axis in reversed(range(spatial)))
        region, source = [source, node], arguments["self"]
    domain = Window(size, stride, pairs, dilation, boundary)
    operands = {"input": source, "weight": weight, "bias": given["bias"]}
    spec = Spec(Stationary(groups=groups), domain, f"conv{spatial}d", present(operands))
    return propose(spec, operands, *region)


def _operands(match: Match, given: dict) -> tuple[Node, Node, int, tuple[int, ...]]:
    """Input, weight, number of spatial axes and window size."""
    source, weight = given["input"], given["weight"]
    require_floating(match, source)
    spatial = rank(weight) - 2
    match.require(rank(source) in (spatial + 1, spatial + 2), "input has an unexpected number of axes")
    return source, weight, spatial, constant_ints(match, shape_of(weight)[2:], "window size", spatial)


def _same_padding(size: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """``padding="same"`` (stride 1): an odd position goes to the high side."""
    totals = tuple(d * (k - 1) for k, d in zip(size, dilation, strict=True))
    return tuple((total // 2, total - total // 2) for total in totals)


def _is_boundary_pad(node: Node, spatial: int) -> bool:
    if node.op != "call_function" or op_name(node) != "aten.pad.default" or len(node.users) != 1:
        return False
    arguments = bind(node)
    flat = arguments["pad"]
    return (
        arguments["mode"] in _BOUNDARIES
        and len(flat) == 2 * spatial
        and all(isinstance(value, int) and value >= 0 for value in flat)
    )


@rule(
    "transposed_convolution",
    "aten.conv_transpose1d.default",
    "aten.conv_transpose2d.input",
    "aten.conv_transpose3d.input",
)
def transposed_convolution(node: Node, match: Match) -> Proposal:
    """y[p] = Σ over x[p'] with p = s·p' − low + d·k of W[k]ᵀ · x[p']."""
    given = bind(node)
    source, weight, spatial, size = _operands(match, given)
    stride, padding, dilation, extra = (
        constant_ints(match, given[name], name, spatial) for name in ("stride", "padding", "dilation", "output_padding")
    )
    (groups,) = constant_ints(match, given["groups"], "groups", 1)
    domain = Window(size, stride, tuple((pad, pad) for pad in padding), dilation, transposed=True, output_padding=extra)
    operands = {"input": source, "weight": weight, "bias": given["bias"]}
    spec = Spec(Stationary(groups=groups), domain, f"conv_transpose{spatial}d", present(operands))
    return propose(spec, operands, node)
