"""Rule ``state_space_dual``: the chunked fallback that transformers' Mamba-2 models run where mamba_ssm is missing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...ir.domain import Past
from ...ir.kernel import Spec
from ...ir.memory import StateSpaceDual
from ..known import KnownFunction, packed
from ..match import Match, Proposal, present, propose, rule

__all__ = ["KNOWN", "state_space_dual"]


def _arguments(given: dict[str, Any]) -> tuple[Any, ...] | None:
    names = ("hidden_states", "dt", "A", "B", "C", "D", "dt_bias", "initial_states")
    if packed(given) or not {*names, "chunk_size", "dt_softplus", "dt_limit", "return_final_states"} <= set(given):
        return None
    ranks = {"hidden_states": 4, "dt": 3, "A": 1, "B": 4, "C": 4, "D": 1}
    if any(given[name] is not None and given[name].dim() != rank for name, rank in ranks.items()):
        return None
    if not isinstance(given["chunk_size"], int) or given.get("kwargs", {}).get("z") is not None:
        return None
    low, high = given["dt_limit"]
    return (*(given[name] for name in names), bool(given["dt_softplus"]), float(low), float(high), given["chunk_size"])


def _call(function: Any, *given: Any) -> Any:
    x, dt, A, B, C, D, bias, initial, softplus, low, high, chunk = given
    options = {"D": D, "dt_bias": bias, "initial_states": initial, "dt_softplus": softplus, "dt_limit": (low, high)}
    return function(x, dt, A, B, C, chunk, return_final_states=True, **options)


def _shapes(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    batch, _, heads, width = x.shape
    return x.new_empty(x.shape, dtype=dtype), x.new_empty((batch, heads, width, B.shape[-1]), dtype=dtype)


KNOWN = KnownFunction(
    "state_space_dual",
    package="transformers.models.",
    functions=("mamba2_chunk_scan",),
    schema=(
        "(Tensor input, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? delta_bias, Tensor? initial,"
        " bool softplus, float low, float high, int chunk) -> (Tensor, Tensor)"
    ),
    arguments=_arguments,
    call=_call,
    shapes=_shapes,
    result=lambda results, given: results if given["return_final_states"] else results[0],
)


@rule("state_space_dual", "itnet_leaf.state_space_dual")
def state_space_dual(node: Node, match: Match) -> Proposal:
    """Mamba-2's recurrence, its step size and skip connection included; the chunks are the source's affair."""
    operands = KNOWN.bind(node)
    softplus, low, high, _ = (operands.pop(name) for name in ("softplus", "low", "high", "chunk"))
    limits = (match.literal(low, "smallest step"), match.literal(high, "largest step"))
    kernel = StateSpaceDual(match.literal(softplus, "softplus"), limits)
    return propose(Spec(kernel, Past(), "state space dual", present(operands)), operands, node)
