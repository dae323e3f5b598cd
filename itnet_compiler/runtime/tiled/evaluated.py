"""What a staged program computes of one side, before its core runs."""

from __future__ import annotations

from torch import Tensor

from ...ir.pair.dense import run
from ...ir.pair.program import QUERY, SHARED, SOURCE
from ...ir.pair.split import Stages
from .problem import Problem

__all__ = ["evaluated"]


def evaluated(cut: Stages, problem: Problem) -> dict[str, Tensor]:
    """Inputs of the core by name: of the query (1 or B, 1 or N, *shape), of the source likewise, shared (*shape)."""
    given: dict[str, Tensor] = {}
    own: dict[int, dict[str, Tensor]] = {SHARED: {}, QUERY: problem.query, SOURCE: problem.source}
    for side, tensors in own.items():
        shared = {name: t if side == SHARED else t[None, None] for name, t in problem.shared.items()}
        inputs, part = tensors | shared, cut.of(side)
        made = run(part, {item.name: inputs[item.name] for item in part.inputs}, 0 if side == SHARED else 2)
        given.update(zip(cut.names[side], made, strict=True))
    return given
