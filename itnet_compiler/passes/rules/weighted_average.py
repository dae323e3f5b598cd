"""Rule ``weighted_average``: the loop that transformers' RWKV runs on the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ...ir.domain import Past
from ...ir.kernel import Spec
from ...ir.weighted_average import WeightedAverage
from ..known import KnownFunction
from ..match import Match, Proposal, present, propose, rule

__all__ = ["KNOWN", "weighted_average"]


def _arguments(given: dict[str, Any]) -> tuple[Any, ...] | None:
    names = ("time_decay", "time_first", "key", "value")
    if not {*names, "state", "return_state"} <= set(given) or given["key"].dim() != 3:
        return None
    return (*(given[name] for name in names), *(given["state"] or (None, None, None)))


def _call(function: Any, decay: Any, bonus: Any, key: Any, value: Any, *state: Any) -> Any:
    y, after = function(decay, bonus, key, value, state=None if state[0] is None else list(state), return_state=True)
    return (y, *after)


def _shapes(decay: Tensor, bonus: Tensor, key: Tensor, value: Tensor, *state: Any) -> tuple[Tensor, ...]:
    wide = torch.promote_types(torch.promote_types(decay.dtype, value.dtype), torch.float32)
    last = (key.shape[0], key.shape[2])
    return (key.new_empty(key.shape), *(key.new_empty(last, dtype=wide) for _ in range(3)))


KNOWN = KnownFunction(
    "weighted_average",
    package="transformers.models.",
    functions=("rwkv_linear_attention_cpu",),
    schema=(
        "(Tensor decay, Tensor bonus, Tensor key, Tensor value, Tensor? numerator, Tensor? denominator,"
        " Tensor? maximum) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    arguments=_arguments,
    call=_call,
    shapes=_shapes,
    result=lambda results, given: (
        results[0],
        list(results[1:]) if given["return_state"] or given["state"] is not None else None,
    ),
)


@rule("weighted_average", "itnet_leaf.weighted_average")
def weighted_average(node: Node, match: Match) -> Proposal:
    """Values weighted by exponentials of keys, which decay with distance."""
    operands = KNOWN.bind(node)
    return propose(Spec(WeightedAverage(), Past(), "weighted average", present(operands)), operands, node)
