"""``torch.ops.itnet.integrate``: a pair program from its own inputs, what is of one side taken out first.

Composite: autograd, compilers and exporters see the operators that it calls, and not how they are chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from ...ir.pair.builder import Builder
from ...ir.pair.dense import run
from ...ir.pair.program import QUERY, SHARED, SOURCE, Program
from ...ir.pair.split import distribute, stages
from .problem import wide

__all__ = ["LIBRARY", "integrate", "with_measure"]

LIBRARY = torch.library.Library("itnet", "FRAGMENT")
LIBRARY.define(
    "integrate(Tensor value, Tensor[] inputs, Tensor? measure, Tensor? mask, Tensor? like_queries, str program,"
    " bool normalise, int before, int after) -> Tensor"
)

_LOG_MEASURE = "log_measure"


def integrate(
    value: Tensor,
    inputs: Sequence[Tensor],
    measure: Tensor | None,
    mask: Tensor | None,
    like_queries: Tensor | None,
    program: str,
    normalise: bool,
    before: int,
    after: int,
) -> Tensor:
    """y_i = Σ_j w_j·κ(i, j)·v_j, or with the softmax of κ + log w, without storing κ.

    Args:
        value: v, (B, H, M, V).
        inputs: Those of the program, in its order: of the query (1 or B, N, *shape), of the source (1 or B, M, *shape),
            shared (*shape).
        measure: w, (1 or B, M). Where weights are normalised, a source of measure 0 takes no part, and none may be
            negative; the gradient of a measure of 0 is 0 there.
        mask: bool (1 or B, 1 or N, M).
        like_queries: (…, N, any), where the program has no input of the query.
        program: κ, the text of a pair program of one output.
        normalise: Whether κ is a score.
        before: Only sources j ≥ i − before take part; −1 for all.
        after: Only sources j ≤ i + after take part; −1 for all.

    Returns:
        y, (B, H, N, V), in the dtype of ``value``.
    """
    dtype, parsed = wide(value.dtype), Program.parse(program)
    names = [item.name for item in parsed.inputs]
    given = {name: tensor.to(dtype) for name, tensor in zip(names, inputs, strict=True)}
    if measure is not None and not normalise:
        value = value * measure[:, None, :, None].to(value.dtype)
    elif measure is not None:
        positive = measure > 0
        logarithm = torch.where(positive, measure, 1.0).to(dtype).log()
        given[_LOG_MEASURE] = logarithm.masked_fill(~positive, -torch.inf)
        parsed = with_measure(parsed)
    cut, batch = stages(distribute(parsed)), value.shape[0]
    groups: dict[int, list[Tensor]] = {}
    for side in (QUERY, SOURCE, SHARED):
        part = cut.of(side)
        placed = {item.name: _placed(item.side, given[item.name], side) for item in part.inputs}
        made = run(part, placed, 0 if side == SHARED else 2)
        groups[side] = made if side == SHARED else [tensor.expand(batch, *tensor.shape[1:]) for tensor in made]
    queries = _queries(parsed, given, like_queries)
    output, _ = torch.ops.itnet.pair_integral(
        value, groups[QUERY], groups[SOURCE], groups[SHARED], mask, queries, str(cut.core), normalise, before, after
    )
    return output


LIBRARY.impl("integrate", integrate, "CompositeImplicitAutograd")


def _placed(own: int, tensor: Tensor, side: int) -> Tensor:
    """A shared tensor among those of a side has leading axes of size 1."""
    return tensor[None, None] if own == SHARED and side != SHARED else tensor


def _queries(program: Program, given: Mapping[str, Tensor], like_queries: Tensor | None) -> int:
    for item in program.inputs:
        if item.side == QUERY:
            return given[item.name].shape[1]
    if like_queries is None:
        raise ValueError("the program has no input of the query, and there is no like_queries to count them")
    return like_queries.shape[-2]


@lru_cache(maxsize=256)
def with_measure(program: Program) -> Program:
    """κ + log w."""
    b = Builder()
    for value in program.values:
        b.emit(value.op, value.args, value.shape, value.attrs)
    (output,) = program.outputs
    return b.program([b.add(output, b.input(_LOG_MEASURE, SOURCE, ()))])
