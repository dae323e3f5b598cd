"""Rules for pooling: over windows (``stationary``) and adaptive (``dense``), and what is refused, with why."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ...ir.dense import Dense
from ...ir.domain import Grid, Window
from ...ir.kernel import Spec
from ...ir.stationary import Stationary
from ..match import Match, Proposal, bind, op_name, propose, rule
from ..window_arguments import constant_ints, output_size, require_floating

__all__ = [
    "adaptive_pooling",
    "average_pooling",
    "fractional_max_pooling",
    "max_pooling",
    "max_unpooling",
]


def _spatial(node: Node) -> int:
    """Number of pooled axes, from the operator's name."""
    return int(op_name(node).partition("pool")[2][0])


def _window(match: Match, given: dict[str, Any], spatial: int, dilation: tuple[int, ...]) -> Window:
    size = constant_ints(match, given["kernel_size"], "window size", spatial)
    stride = constant_ints(match, given["stride"], "stride", spatial) if given["stride"] else size
    padding = constant_ints(match, given["padding"], "padding", spatial)
    ceil_mode = match.literal(given["ceil_mode"], "ceil_mode")
    return Window(size, stride, tuple((pad, pad) for pad in padding), dilation, ceil_mode=ceil_mode)


@rule("average_pooling", *(f"aten.avg_pool{n}d.default" for n in (1, 2, 3)))
def average_pooling(node: Node, match: Match) -> Proposal:
    """y[p] = mean over k of x[s·p − low + k]. LP pooling arrives as this between two powers."""
    given, spatial = bind(node), _spatial(node)
    require_floating(match, given["self"])
    window = _window(match, given, spatial, (1,) * spatial)
    kernel = Stationary(
        weights="uniform",
        count_include_pad=match.literal(given["count_include_pad"], "count_include_pad"),
        divisor=match.literal(given.get("divisor_override"), "divisor_override"),
    )
    return propose(Spec(kernel, window, f"avg_pool{spatial}d", ("input",)), {"input": given["self"]}, node)


@rule(
    "max_pooling",
    *(f"aten.max_pool{n}d.default" for n in (1, 2, 3)),
    *(f"aten.max_pool{n}d_with_indices.default" for n in (1, 2, 3)),
)
def max_pooling(node: Node, match: Match) -> Proposal:
    """y[p] = max over k of x[s·p − low + d·k], and where it was."""
    given, spatial = bind(node), _spatial(node)
    require_floating(match, given["self"])
    window = _window(match, given, spatial, constant_ints(match, given["dilation"], "dilation", spatial))
    kernel = Stationary(weights="uniform", maximum=True, returns_indices="_with_indices" in op_name(node))
    return propose(Spec(kernel, window, f"max_pool{spatial}d", ("input",)), {"input": given["self"]}, node)


@rule("adaptive_pooling", *(f"aten.adaptive_{kind}_pool{n}d.default" for kind in ("avg", "max") for n in (1, 2, 3)))
def adaptive_pooling(node: Node, match: Match) -> Proposal:
    """y[i] = mean or max over ⌊i·A/O⌋ … ⌈(i+1)·A/O⌉; also what ``interpolate(mode="area")`` becomes."""
    given, spatial = bind(node), _spatial(node)
    require_floating(match, given["self"])
    maximum = "max" in op_name(node)
    size, operands = output_size(given["output_size"])
    kernel = Dense("adaptive", size, maximum=maximum, returns_indices=maximum)
    operands = {"input": given["self"]} | operands
    origin = f"adaptive_{'max' if maximum else 'avg'}_pool{spatial}d"
    return propose(Spec(kernel, Grid(spatial), origin, tuple(operands)), operands, node)


@rule("fractional_max_pooling", "aten.fractional_max_pool2d.default", "aten.fractional_max_pool3d.default")
def fractional_max_pooling(node: Node, match: Match) -> Proposal:
    """Refused: no domain describes it."""
    match.refuse("the windows of fractional max pooling are drawn at random in every call")


@rule("max_unpooling", "aten.max_unpool2d.default", "aten.max_unpool3d.default")
def max_unpooling(node: Node, match: Match) -> Proposal:
    """Refused: no kernel describes it."""
    match.refuse("max unpooling writes to positions that are known only at run time (the indices of a max pooling)")
