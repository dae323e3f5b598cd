"""Rule ``token_mixing``: a linear layer or a product with a weight over the position axis."""

from __future__ import annotations

from torch.fx import Node

from ...ir.domain import Grid
from ...ir.kernel import Spec
from ...ir.mixing import Mixing
from ..axes import AxisRole, is_weight, roles_of
from ..match import Match, Proposal, bind, present, propose, rank, rule, value_of

__all__ = ["token_mixing"]


@rule("token_mixing", "aten.linear.default", "aten.matmul.default")
def token_mixing(node: Node, match: Match) -> Proposal:
    """y[…, i] = Σ_j M[i, j]·x[…, j] + b[i], where j is proven to count positions."""
    given = bind(node)
    if "input" in given:
        operands = {"input": given["input"], "weight": given["weight"], "bias": given["bias"]}
        place, left = -1, False
        match.require(rank(given["weight"]) == 2, "the weight is a vector")
    else:
        operands = {"input": given["other"], "weight": given["self"]}
        place, left = -2, True
    source, weight = operands["input"], operands["weight"]
    match.require(rank(source) >= (2 if left else 1), "the operand has no such axis")
    role = roles_of(source)[place]
    match.require(role is AxisRole.POSITION, f"the axis summed over is not proven to hold positions: {role.value}")
    match.require(is_weight(weight), "both factors depend on the input")
    match.require(rank(weight) == 2, "another matrix for each sample or head")
    match.require(value_of(node).dtype == value_of(source).dtype, "the result has another dtype")
    return propose(Spec(Mixing(left), Grid(1), "token mixing", present(operands)), operands, node)
