"""Rule ``reduction``: sum, mean and maximum over position axes: global pooling, in whatever layout."""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from ...ir.dense import Dense
from ...ir.domain import Grid
from ...ir.kernel import Spec
from ..axes import AxisRole, roles_of
from ..match import Match, Proposal, bind, propose, rank, rule
from ..operators import operator_name
from ..statistics import is_statistic

__all__ = ["maximum_with_indices", "reduction"]


_STATISTIC = "a statistic of a normalisation, not a pooling of positions"


def _position_axes(node: Node, match: Match, given: dict[str, Any]) -> tuple[int, ...]:
    """The axes reduced, as the user counted them, all of them proven to be position axes."""
    source = given["self"]
    match.require(isinstance(source, Node), "the operand is no tensor")
    dims = given.get("dim")
    dims = [dims] if isinstance(dims, int) else dims
    axes = tuple(range(rank(source))) if dims is None or dims == [] else match.literal(dims, "axes")
    roles = roles_of(source)
    match.require(len(axes) > 0, "a scalar has no positions")
    for axis in axes:
        role = roles[axis]
        match.require(role is AxisRole.POSITION, f"axis {axis} is not proven to be a position axis, it is {role.value}")
    return axes


@rule(
    "reduction",
    *("aten.mean.default", "aten.mean.dim", "aten.sum.default", "aten.sum.dim_IntList", "aten.amax.default"),
)
def reduction(node: Node, match: Match) -> Proposal:
    """Σ over the positions of x, divided by their number for a mean, or the largest x."""
    given, name = bind(node), operator_name(node)
    axes = _position_axes(node, match, given)
    dtype = given.get("dtype")
    match.require(dtype is None or dtype == given["self"].meta["val"].dtype, "the result has another dtype")
    match.require(node.meta["val"].dtype == given["self"].meta["val"].dtype, "the result has another dtype")
    match.require(not is_statistic(node), _STATISTIC)
    kernel = Dense(
        "uniform", axes=axes, keepdim=bool(given.get("keepdim", False)), maximum=name == "amax", mean=name == "mean"
    )
    operands = {"input": given["self"]}
    return propose(Spec(kernel, Grid(len(axes)), name, ("input",)), operands, node)


@rule("maximum_with_indices", "aten.max.dim")
def maximum_with_indices(node: Node, match: Match) -> Proposal:
    """The largest x and where it is: of several equal positions one gets the gradient; ``amax`` gives each a share."""
    given = bind(node)
    axes = _position_axes(node, match, given)
    match.require(not is_statistic(node), _STATISTIC, node)
    kernel = Dense("uniform", axes=axes, keepdim=bool(given["keepdim"]), maximum=True, returns_indices=True)
    return propose(Spec(kernel, Grid(1), "max", ("input",)), {"input": given["self"]}, node)
