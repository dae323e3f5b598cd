"""Rule ``sampling``: ``grid_sample``, by itself and in deformable attention."""

from __future__ import annotations

from torch.fx import Node

from ...ir.domain import Grid
from ...ir.kernel import Spec
from ...ir.sampled import OUTSIDE, WEIGHTS, Sampled
from ..match import Match, Proposal, bind, propose, rank, rule
from ..window_arguments import require_floating

__all__ = ["sampling"]


@rule("sampling", "aten.grid_sampler.default")
def sampling(node: Node, match: Match) -> Proposal:
    """y[p] = Σ_p' w(u[p] − p')·x[p'], with positions u that are computed."""
    given = bind(node)
    source, positions = given["input"], given["grid"]
    require_floating(match, source)
    kernel = Sampled(WEIGHTS[given["interpolation_mode"]], OUTSIDE[given["padding_mode"]], given["align_corners"])
    operands = {"input": source, "positions": positions}
    return propose(Spec(kernel, Grid(rank(source) - 2), "grid sample", tuple(operands)), operands, node)
