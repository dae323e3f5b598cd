"""Rule ``fold``: overlapping windows added up."""

from __future__ import annotations

from torch.fx import Node

from ...ir.domain import Window
from ...ir.fold import Fold
from ...ir.kernel import Spec
from ..match import Match, Proposal, bind, propose, rule
from ..operators import folds_nothing

__all__ = ["fold"]


@rule("fold", "aten.col2im.default")
def fold(node: Node, match: Match) -> Proposal:
    """y[p] = Σ of the taps of all windows that p lies in."""
    given = bind(node)
    size, dilation, padding, stride = (
        match.literal(given[name], name) for name in ("kernel_size", "dilation", "padding", "stride")
    )
    match.require(not folds_nothing(bind(node)), "windows of one position: the same values in another shape")
    domain = Window(size, stride, tuple((pad, pad) for pad in padding), dilation, transposed=True)
    operands = {"input": given["self"], "output_size": list(given["output_size"])}
    return propose(Spec(Fold(), domain, "fold", tuple(operands)), operands, node)
