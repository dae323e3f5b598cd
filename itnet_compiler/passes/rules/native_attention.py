"""Rules ``native_attention`` and ``encoder_layer``: the native operators of torch's transformer layers."""

from __future__ import annotations

import operator
from typing import Any

from torch.fx import Node

from ...ir.domain import Keys
from ...ir.encoder_layer import EncoderLayer
from ...ir.kernel import Spec
from ...ir.projected_softmax import MASKS, ProjectedSoftmax
from ..match import Match, Proposal, bind, present, propose, rank, rule, value_of

__all__ = ["encoder_layer", "native_attention"]

_PROJECTIONS = ("qkv_weight", "qkv_bias", "proj_weight", "proj_bias")
_NORMS = ("norm_weight_1", "norm_bias_1", "norm_weight_2", "norm_bias_2")
_FEED_FORWARD = ("ffn_weight_1", "ffn_bias_1", "ffn_weight_2", "ffn_bias_2")


@rule("native_attention", "aten._native_multi_head_attention.default")
def native_attention(node: Node, match: Match) -> Proposal:
    """Self-attention with its projections: y, or (y, weights)."""
    given = bind(node)
    same = given["query"] is given["key"] is given["value"]
    match.require(same, "query, key and value are different tensors")
    weights = ""
    if match.literal(given["need_weights"], "need_weights"):
        weights = "mean" if match.literal(given["average_attn_weights"], "average_attn_weights") else "heads"
    operands = {"input": given["query"]} | {role: given[role] for role in _PROJECTIONS} | {"mask": given["mask"]}
    heads = _heads(given, given["num_head"], operands, match)
    kernel = ProjectedSoftmax(heads, _mask(given, match), weights)
    spec = Spec(kernel, Keys(), "attention", present(operands))
    if weights:
        return propose(spec, operands, node)
    outputs = [user for user in node.users if user.target is operator.getitem and user.args[1] == 0]
    match.require(len(outputs) == len(node.users) == 1, "the weights are used although they were not asked for")
    return propose(spec, operands, node, outputs[0])


@rule("encoder_layer", "aten._transformer_encoder_layer_fwd.default")
def encoder_layer(node: Node, match: Match) -> Proposal:
    """Attention, feed-forward network, residuals and norms of a whole layer."""
    given = bind(node)
    roles = (*_PROJECTIONS, *_NORMS, *_FEED_FORWARD, "mask")
    operands = {"input": given["src"]} | {role: given[role] for role in roles}
    kernel = EncoderLayer(
        _heads(given, given["num_heads"], operands, match),
        _mask(given, match),
        "gelu" if match.literal(given["use_gelu"], "use_gelu") else "relu",
        bool(match.literal(given["norm_first"], "norm_first")),
        float(match.literal(given["eps"], "eps")),
    )
    return propose(Spec(kernel, Keys(), "transformer encoder layer", present(operands)), operands, node)


def _heads(given: dict[str, Any], heads: Any, operands: dict[str, Any], match: Match) -> int:
    """The number of heads, where the sizes are those that the definition assumes."""
    match.require(rank(operands["input"]) == 3, "the input is not (batch, length, features)")
    features, width = value_of(operands["input"]).shape[-1], match.literal(given["embed_dim"], "embed_dim")
    match.require(features == width, f"{width} features are expected where there are {features}")
    return int(match.literal(heads, "the number of heads"))


def _mask(given: dict[str, Any], match: Match) -> str:
    """What the mask is over. The operator takes any mask but one of two axes for one of all weights."""
    if given["mask"] is None:
        return ""
    kind, axes = match.literal(given["mask_type"], "mask_type"), rank(given["mask"])
    match.require(kind in range(len(MASKS)), f"a mask of type {kind}")
    wanted = 4 if MASKS[kind] == "full" else 2
    match.require(axes == wanted, f"a mask of {axes} axes for {MASKS[kind]}")
    return MASKS[kind]
