"""Rule ``attention``: ``scaled_dot_product_attention`` with any of its arguments."""

from __future__ import annotations

from torch.fx import Node

from ...ir.domain import Keys
from ...ir.kernel import Spec
from ...ir.softmax import Softmax
from ..match import Match, Proposal, bind, present, propose, rank, rule

__all__ = ["attention"]


@rule("attention", "aten.scaled_dot_product_attention.default")
def attention(node: Node, match: Match) -> Proposal:
    """y_i = Σ_j softmax_j(scale·⟨q_i, k_j⟩ + b_ij)·v_j."""
    given = bind(node)
    for name in ("query", "key", "value"):
        match.require(rank(given[name]) >= 2, f"{name} has fewer than two axes")
    causal, grouped = (match.literal(given[name], name) for name in ("is_causal", "enable_gqa"))
    both = causal and given["attn_mask"] is not None
    match.require(not both, "a mask and is_causal at once, which only some of PyTorch's kernels accept")
    dropout, scale = match.literal(given["dropout_p"], "dropout_p"), match.literal(given["scale"], "scale")
    match.require(not grouped or rank(given["query"]) >= 3, "grouped attention without an axis of heads")
    kernel = Softmax(None if scale is None else float(scale), float(dropout), bool(grouped))
    operands = {role: given[role] for role in ("query", "key", "value")} | {"mask": given["attn_mask"]}
    spec = Spec(kernel, Keys(causal=bool(causal)), "attention", present(operands))
    return propose(spec, operands, node)
