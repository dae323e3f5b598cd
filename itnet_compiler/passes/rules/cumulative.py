"""Rule ``cumulative_sum``: sums of everything up to a position."""

from __future__ import annotations

from torch.fx import Node

from ...ir.cumulative import Cumulative
from ...ir.domain import Past
from ...ir.kernel import Spec
from ..axes import AxisRole, roles_of
from ..match import Match, Proposal, bind, propose, rank, rule, value_of

__all__ = ["cumulative_sum"]


@rule("cumulative_sum", "aten.cumsum.default")
def cumulative_sum(node: Node, match: Match) -> Proposal:
    """y_t = Σ_{s ≤ t} x_s."""
    given = bind(node)
    source, place = given["self"], given["dim"]
    match.require(value_of(source).dtype == value_of(node).dtype, "the result has another dtype")
    match.require(value_of(source).dtype.is_floating_point, "counts, not values")
    match.require(rank(source) > 0, "a scalar has no positions")
    role = roles_of(source)[place]
    match.require(role is AxisRole.POSITION, f"the axis summed along is not proven to hold positions: {role.value}")
    axis = place if place < 0 else place - rank(source)
    return propose(Spec(Cumulative(axis), Past(), "cumulative sum", ("input",)), {"input": source}, node)
