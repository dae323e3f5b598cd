"""Rule ``pair_integral``: integrals of pair programs, as ``itnet.nn`` writes them."""

from __future__ import annotations

from torch.fx import Node

from ...ir.domain import Band, Domain, Keys
from ...ir.kernel import Spec
from ...ir.pair.program import QUERY, Program
from ...ir.pairwise import Pairwise
from ..match import Match, Proposal, bind, present, propose, rule

__all__ = ["pair_integral"]


@rule("pair_integral", "itnet.integrate.default")
def pair_integral(node: Node, match: Match) -> Proposal:
    """The kernel is the program of the call; its inputs become operands by name."""
    given = bind(node)
    program = Program.parse(match.literal(given["program"], "the program"))
    before, after = (match.literal(given[name], name) for name in ("before", "after"))
    names = [item.name for item in program.inputs]
    match.require(len(set(names) | _FRAME) == len(names) + len(_FRAME), "an input of the program has a taken name")
    operands = {"value": given["value"], **dict(zip(names, given["inputs"], strict=True))}
    operands |= {"measure": given["measure"], "mask": given["mask"]}
    if all(item.side != QUERY for item in program.inputs):
        operands["like_queries"] = given["like_queries"]
    kernel = Pairwise(program, match.literal(given["normalise"], "normalise"))
    return propose(Spec(kernel, _domain(before, after), "integral transform", present(operands)), operands, node)


_FRAME = {"value", "measure", "mask", "like_queries"}


def _domain(before: int, after: int) -> Domain:
    if before < 0 and after <= 0:
        return Keys(causal=after == 0)
    return Band(None if before < 0 else before, None if after < 0 else after)
