"""Rules ``gated_delta`` and ``kimi_delta``: the gated delta rule as transformers writes it where fla is not installed.

Both the chunked functions and those that loop over the steps are one integral.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...ir.domain import Past
from ...ir.kernel import Spec
from ...ir.memory import GatedDelta
from ..known import KnownFunction, packed
from ..match import Match, Proposal, present, propose, rule

__all__ = ["KIMI", "KNOWN", "gated_delta", "kimi_delta"]

# Added to squared lengths by the source; the rewrite is verified, so that another number there is found out.
_UNIT = 1e-6


def _arguments(given: dict[str, Any]) -> tuple[Any, ...] | None:
    names = ("query", "key", "value", "g", "beta", "initial_state")
    flags = ("use_qk_l2norm_in_kernel", "output_final_state")
    if packed(given) or not {*names, *flags} <= set(given) or given["query"].dim() != 4:
        return None
    return (*(given[name] for name in names), bool(given["use_qk_l2norm_in_kernel"]))


def _call(function: Any, q: Any, k: Any, v: Any, g: Any, beta: Any, initial: Any, unit: bool) -> Any:
    options = {"initial_state": initial, "output_final_state": True, "use_qk_l2norm_in_kernel": unit}
    return function(q, k, v, g=g, beta=beta, **options)


def _shapes(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, initial: Any, unit: bool
) -> tuple[Tensor, Tensor]:
    batch, _, heads, width = v.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    return v.new_empty(v.shape, dtype=q.dtype), v.new_empty((batch, heads, k.shape[-1], width), dtype=wide)


def _known(name: str, *functions: str) -> KnownFunction:
    return KnownFunction(
        name,
        package="transformers.models.",
        functions=functions,
        schema=(
            "(Tensor query, Tensor key, Tensor value, Tensor decay, Tensor beta, Tensor? initial, bool unit)"
            " -> (Tensor, Tensor)"
        ),
        arguments=_arguments,
        call=_call,
        shapes=_shapes,
        result=lambda results, given: (results[0], results[1] if given["output_final_state"] else None),
    )


KNOWN = _known("gated_delta", "torch_chunk_gated_delta_rule", "torch_recurrent_gated_delta_rule")
KIMI = _known("kimi_delta", "chunk_kimi_delta_attention", "recurrent_kimi_delta_attention")


def _proposal(known: KnownFunction, node: Node, match: Match, diagonal: bool) -> Proposal:
    operands = known.bind(node)
    unit = match.literal(operands.pop("unit"), "normalisation")
    kernel = GatedDelta(_UNIT if unit else None, diagonal)
    return propose(Spec(kernel, Past(), "gated delta rule", present(operands)), operands, node)


@rule("gated_delta", "itnet_leaf.gated_delta")
def gated_delta(node: Node, match: Match) -> Proposal:
    """One decay a head and step."""
    return _proposal(KNOWN, node, match, diagonal=False)


@rule("kimi_delta", "itnet_leaf.kimi_delta")
def kimi_delta(node: Node, match: Match) -> Proposal:
    """A decay for every key feature."""
    return _proposal(KIMI, node, match, diagonal=True)
