"""Rule ``interpolation``: every operator that ``interpolate`` and ``nn.Upsample`` become (``area``: see pooling)."""

from __future__ import annotations

from torch.fx import Node

from ...ir.dense import Dense
from ...ir.domain import Grid
from ...ir.kernel import Spec
from ..match import Match, Proposal, bind, op_name, propose, rank, rule
from ..window_arguments import output_size, require_floating

__all__ = ["interpolation"]

# Operator → weights, spatial axes, antialias.
_OPERATORS = {
    **{f"aten.upsample_nearest{n}d.vec": ("nearest", n, False) for n in (1, 2, 3)},
    **{f"aten._upsample_nearest_exact{n}d.vec": ("nearest-exact", n, False) for n in (1, 2, 3)},
    "aten.upsample_linear1d.vec": ("linear", 1, False),
    "aten.upsample_bilinear2d.vec": ("linear", 2, False),
    "aten.upsample_trilinear3d.vec": ("linear", 3, False),
    "aten.upsample_bicubic2d.vec": ("cubic", 2, False),
    "aten._upsample_bilinear2d_aa.vec": ("linear", 2, True),
    "aten._upsample_bicubic2d_aa.vec": ("cubic", 2, True),
}


@rule("interpolation", *_OPERATORS)
def interpolation(node: Node, match: Match) -> Proposal:
    """M₁ ⊗ … ⊗ M_r · x with rows given by the ratio of the sizes, or by the scales that the user gave."""
    given = bind(node)
    weights, spatial, antialias = _OPERATORS[op_name(node)]
    source, scales = given["input"], given["scale_factors"]
    require_floating(match, source)
    match.require(rank(source) == spatial + 2, "input has an unexpected number of axes")
    match.require((scales is None) != (given["output_size"] is None), "needs either an output size or scales")
    if scales is not None:
        scales = tuple(float(scale) for scale in match.literal(scales, "the scale factor"))
    size, operands = output_size(given["output_size"])
    kernel = Dense(
        weights,
        size,
        scales,
        align_corners=match.literal(given.get("align_corners", False), "align_corners"),
        antialias=antialias,
    )
    operands = {"input": source} | operands
    return propose(Spec(kernel, Grid(spatial), "interpolate", tuple(operands)), operands, node)
