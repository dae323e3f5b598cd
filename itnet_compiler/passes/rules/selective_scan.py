"""Rule ``selective_scan``: the fallback that transformers' Mamba models run where mamba_ssm is not installed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...ir.domain import Past
from ...ir.kernel import Spec
from ...ir.selective import Selective
from ..known import KnownFunction, packed
from ..match import Match, Proposal, present, propose, rule

__all__ = ["KNOWN", "selective_scan"]


def _arguments(given: dict[str, Any]) -> tuple[Any, ...] | None:
    names = ("hidden_states", "dt", "A", "B", "C", "D", "z", "delta_bias", "delta_softplus")
    if packed(given) or not set(names) <= set(given) or given["hidden_states"].dim() != 3 or given["A"].dim() != 2:
        return None
    return (*(given[name] for name in names[:-1]), bool(given["delta_softplus"]))


def _call(function: Any, u: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, z: Any, bias: Any, softplus: bool) -> Any:
    return function(u, dt, A, B, C, D, z, bias, softplus, return_last_state=True)


def _shapes(
    u: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Any, z: Any, bias: Any, softplus: bool
) -> tuple[Tensor, Tensor]:
    """(y, last state). In the source the state accumulates in at least float32, and y is rounded before D and gate."""
    wide = torch.promote_types(torch.promote_types(A.dtype, dt.dtype), torch.float32)
    dtype = u.dtype
    for one in (D, z):
        dtype = dtype if one is None else torch.promote_types(dtype, one.dtype)
    return u.new_empty(u.shape, dtype=dtype), u.new_empty((u.shape[0], *A.shape), dtype=wide)


KNOWN = KnownFunction(
    "selective_scan",
    package="transformers.models.",
    functions=("mamba_selective_scan",),
    schema=(
        "(Tensor input, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? gate, Tensor? delta_bias,"
        " bool softplus) -> (Tensor, Tensor)"
    ),
    arguments=_arguments,
    call=_call,
    shapes=_shapes,
    result=lambda results, given: results if given["return_last_state"] else results[0],
)


@rule("selective_scan", "itnet_leaf.selective_scan")
def selective_scan(node: Node, match: Match) -> Proposal:
    """Mamba's recurrence, its step size, skip connection and gate included."""
    operands = KNOWN.bind(node)
    softplus = match.literal(operands.pop("softplus"), "softplus")
    kernel = Selective(softplus=softplus, returns_state=True)
    return propose(Spec(kernel, Past(), "selective scan", present(operands)), operands, node)
