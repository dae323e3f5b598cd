"""The custom operators ``itnet::pair_integral`` and its backward, with fake implementations and autograd."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ...errors import InputError
from ...ir.pair.adjoint import Adjoint, adjoint
from ...ir.pair.program import QUERY, SHARED, SIDES, SOURCE, Program
from ..registering import keep_nothing, outside_dynamo, register
from .backends import backend
from .problem import Gradients, Problem, wide

__all__ = ["LIBRARY", "pair_integral", "pair_integral_backward"]

LIBRARY = torch.library.Library("itnet", "FRAGMENT")


def pair_integral(
    value: Tensor,
    query: Sequence[Tensor],
    source: Sequence[Tensor],
    shared: Sequence[Tensor],
    mask: Tensor | None,
    queries: int,
    program: str,
    normalise: bool,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor]:
    """y_i = Σ_j K(i, j)·v_j, or with the softmax of K over j, for K given as a pair program.

    Args:
        value: v, (B, H, M, V).
        query: Query inputs of the program in its order, each (B, N, *shape).
        source: Source inputs, each (B, M, *shape).
        shared: Shared inputs, each (*shape).
        mask: bool (1 or B, 1 or N, M), True where a pair takes part. A query without any gets 0.
        queries: N.
        program: Text of the pair program, of one output of shape (H,) or ().
        normalise: Whether K is a score whose softmax over the sources is the weight.
        before: Only sources j ≥ i − before take part; −1 for all.
        after: Only sources j ≤ i + after take part; −1 for all.

    Returns:
        y, (B, H, N, V) in the dtype of ``value``, in memory one query after the other; and the logarithm of the
        normaliser, (B, H, N) in the dtype of computation (no elements where nothing is normalised), for the backward
        pass.
    """
    problem = _problem(value, query, source, shared, mask, queries, program, normalise, before, after)
    output, normaliser = backend(problem).forward(problem)
    rows = output.transpose(1, 2).to(value.dtype).contiguous()
    return rows.transpose(1, 2), normaliser.contiguous()


def _shapes(
    value: Tensor,
    query: Sequence[Tensor],
    source: Sequence[Tensor],
    shared: Sequence[Tensor],
    mask: Tensor | None,
    queries: int,
    program: str,
    normalise: bool,
    before: int,
    after: int,
) -> tuple[Tensor, Tensor]:
    batch, heads, _, width = value.shape
    shape = (batch, heads, queries) if normalise else (0,)
    rows = value.new_empty((batch, queries, heads, width))
    return rows.transpose(1, 2), value.new_empty(shape, dtype=wide(value.dtype))


def pair_integral_backward(
    grad: Tensor,
    value: Tensor,
    query: Sequence[Tensor],
    source: Sequence[Tensor],
    shared: Sequence[Tensor],
    mask: Tensor | None,
    output: Tensor,
    normaliser: Tensor,
    wanted: Sequence[bool],
    program: str,
    normalise: bool,
    before: int,
    after: int,
) -> list[Tensor]:
    """Gradients of the value and of the program's inputs (query, source, shared), recomputing the kernel.

    ``grad`` is that of y; ``wanted`` says for value, query, source and shared inputs in order whether the gradient is
    needed, and one that is not comes back without elements. All else is as in ``pair_integral``, or its results.
    """
    problem = _problem(value, query, source, shared, mask, grad.shape[2], program, normalise, before, after)
    names = _names(problem)
    chosen = frozenset(name for name, want in zip(names, wanted[1:], strict=True) if want)
    dtype = wide(value.dtype)
    found = backend(problem).backward(
        problem, _adjoint(problem.core, chosen), output.to(dtype), normaliser, grad.to(dtype)
    )
    return _gradients(found, names, value, (*query, *source, *shared), wanted)


def _gradients(
    found: Gradients, names: Sequence[str], value: Tensor, inputs: Sequence[Tensor], wanted: Sequence[bool]
) -> list[Tensor]:
    gradients = [
        found.value.to(value.dtype).contiguous() if wanted[0] and found.value is not None else value.new_empty(0)
    ]
    for name, tensor, want in zip(names, inputs, wanted[1:], strict=True):
        if not want:
            gradients.append(tensor.new_empty(0))
        elif name in found.inputs:
            gradients.append(found.inputs[name].to(tensor.dtype).contiguous())
        else:
            gradients.append(torch.zeros_like(tensor, memory_format=torch.contiguous_format))
    return gradients


def _backward_shapes(
    grad: Tensor,
    value: Tensor,
    query: Sequence[Tensor],
    source: Sequence[Tensor],
    shared: Sequence[Tensor],
    mask: Tensor | None,
    output: Tensor,
    normaliser: Tensor,
    wanted: Sequence[bool],
    program: str,
    normalise: bool,
    before: int,
    after: int,
) -> list[Tensor]:
    tensors = (value, *query, *source, *shared)
    return [tensor.new_empty(tensor.shape if want else (0,)) for tensor, want in zip(tensors, wanted, strict=True)]


def _problem(
    value: Tensor,
    query: Sequence[Tensor],
    source: Sequence[Tensor],
    shared: Sequence[Tensor],
    mask: Tensor | None,
    queries: int,
    program: str,
    normalise: bool,
    before: int,
    after: int,
) -> Problem:
    core, dtype = Program.parse(program), wide(value.dtype)
    batch, heads, sources, _ = value.shape
    if core.values[core.outputs[0]].size not in (1, heads):
        raise InputError(f"values of {heads} heads do not fit a kernel of {core.values[core.outputs[0]].size}")
    given: dict[int, dict[str, Tensor]] = {}
    for side, tensors, lead in (
        (QUERY, query, (batch, queries)),
        (SOURCE, source, (batch, sources)),
        (SHARED, shared, ()),
    ):
        items = [item for item in core.inputs if item.side == side]
        for item, tensor in zip(items, tensors, strict=True):
            if tensor.shape != (*lead, *item.shape):
                raise InputError(
                    f"what is computed of the {SIDES[side]} has shape {tuple(tensor.shape)}, the kernel takes"
                    f" {(*lead, *item.shape)}",
                    remedy="positions, features and parameters have other widths or lengths than the kernel has",
                )
        given[side] = {item.name: tensor.to(dtype) for item, tensor in zip(items, tensors, strict=True)}
    if mask is not None and not (
        mask.dim() == 3 and mask.shape[0] in (1, batch) and mask.shape[1] in (1, queries) and mask.shape[2] == sources
    ):
        raise InputError(f"a mask of {tuple(mask.shape)}", remedy=f"give ({batch} or 1, {queries} or 1, {sources})")
    return Problem(
        core,
        value.to(dtype),
        given[QUERY],
        given[SOURCE],
        given[SHARED],
        mask,
        queries,
        normalise,
        None if before < 0 else before,
        None if after < 0 else after,
        value.dtype if value.dtype in (torch.bfloat16, torch.float16) else None,
    )


def _names(problem: Problem) -> tuple[str, ...]:
    """Inputs of the core in the order of the operator's arguments."""
    return (*problem.query, *problem.source, *problem.shared)


@lru_cache(maxsize=256)
def _adjoint(core: Program, wanted: frozenset[str]) -> Adjoint:
    return adjoint(core, wanted)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    value, query, source, shared, mask, _, *settings = inputs
    ctx.counts = len(query), len(source)
    ctx.settings = settings
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, mask, value, *query, *source, *shared)


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    output, normaliser, mask, value, *inputs = ctx.saved_tensors
    one, two = ctx.counts
    query, source, shared = inputs[:one], inputs[one : one + two], inputs[one + two :]
    needs = ctx.needs_input_grad
    wanted = [needs[0], *(flag for group in needs[1:4] for flag in group)]
    given = (grad, value, query, source, shared, mask, output, normaliser, wanted)
    found = torch.ops.itnet.pair_integral_backward(*given, *ctx.settings)
    first, *rest = [gradient if want else None for gradient, want in zip(found, wanted, strict=True)]
    return first, rest[:one], rest[one : one + two], rest[one + two :], None, None, None, None, None, None


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise NotImplementedError(
        "a tiled integral has no second derivatives\n  Remedy: itnet.lower(model, method='reference'), or in a layer"
        " method='reference'"
    )


_CALL = "Tensor value, Tensor[] query, Tensor[] source, Tensor[] shared, Tensor? mask"
_SETTINGS = "str program, bool normalise, int before, int after"
LIBRARY.define(f"pair_integral({_CALL}, SymInt queries, {_SETTINGS}) -> (Tensor, Tensor)")
LIBRARY.define(
    f"pair_integral_backward(Tensor grad, {_CALL}, Tensor output, Tensor normaliser, bool[] wanted, {_SETTINGS})"
    " -> Tensor[]"
)
for _name, _function, _fake, _pull, _setup in (
    ("pair_integral", pair_integral, _shapes, _backward, _setup_context),
    ("pair_integral_backward", pair_integral_backward, _backward_shapes, _no_second_derivative, keep_nothing),
):
    register(LIBRARY, _name, outside_dynamo(_function), _fake, _pull, _setup)
