"""The tiled integral in plain torch: right on any device and in any dtype, and needs no compiler."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from ...ir.pair.adjoint import SEED, Adjoint
from ...ir.pair.dense import run
from ...ir.pair.program import PAIR, Program
from .problem import Gradients, Problem

__all__ = ["backward", "forward"]

# Elements of the widest value in a tile: 1 MiB of float32, which stays in a second-level cache.
TILE = 1 << 18


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """(y, (B, H, N, V); logarithm of the normaliser, (B, H, N), or of no elements where there is none)."""
    batch, heads, _, width = problem.value.shape
    output = problem.value.new_zeros((batch, heads, problem.queries, width))
    normaliser = problem.value.new_full((batch, heads, problem.queries), -math.inf) if problem.normalise else None
    for some, rows in _rows(problem, problem.core):
        if normaliser is None:
            for columns in _columns(problem, problem.core, some, rows):
                weights = _masked(problem, _kernel(problem, some, rows, columns), some, rows, columns, 0.0)
                output[some, :, rows] += weights @ problem.value[some, :, columns]
        else:
            output[some, :, rows], normaliser[some, :, rows] = _softmax(problem, some, rows)
    return output, normaliser if normaliser is not None else problem.value.new_empty(0)


def _softmax(problem: Problem, some: slice, rows: slice) -> tuple[Tensor, Tensor]:
    """Output and log-normaliser of a block of queries, in one pass over the sources (online softmax)."""
    count, queries = len(range(problem.batch)[some]), rows.stop - rows.start
    peak = problem.value.new_full((count, problem.heads, queries, 1), -math.inf)
    total = torch.zeros_like(peak)
    output = problem.value.new_zeros((count, problem.heads, queries, problem.value.shape[3]))
    for columns in _columns(problem, problem.core, some, rows):
        scores = _masked(problem, _kernel(problem, some, rows, columns), some, rows, columns, -math.inf)
        higher = torch.maximum(peak, scores.amax(-1, keepdim=True))
        level = higher.masked_fill(higher == -math.inf, 0.0)
        weights, decay = torch.exp(scores - level), torch.exp(peak - level)
        total = total * decay + weights.sum(-1, keepdim=True)
        output = output * decay + weights @ problem.value[some, :, columns]
        peak = higher
    return output / total.masked_fill(total == 0.0, 1.0), (peak + torch.log(total)).squeeze(-1)


def backward(problem: Problem, adjoint: Adjoint, output: Tensor, normaliser: Tensor, grad: Tensor) -> Gradients:
    """Gradients of the inputs that ``adjoint`` names, and of the value; every tile is computed again."""
    products = tuple(dict.fromkeys(product.matrix for product in adjoint.products))
    found = Gradients.zeros(
        problem, (*adjoint.inputs, *(name for name in products if name not in adjoint.inputs)), True
    )
    assert found.value is not None
    program = adjoint.program
    slope = (grad * output).sum(-1, keepdim=True) if problem.normalise else None
    for some, rows in _rows(problem, program):
        for columns in _columns(problem, program, some, rows):
            value, pull = problem.value[some, :, columns], grad[some, :, rows]
            raw = pull @ value.mT
            kernel = _kernel(problem, some, rows, columns)
            if slope is None:
                weights = _masked(problem, kernel, some, rows, columns, 0.0)
                cotangent = _masked(problem, raw, some, rows, columns, 0.0)
            else:
                level = normaliser[some, :, rows].unsqueeze(-1)
                scores = _masked(problem, kernel, some, rows, columns, -math.inf)
                weights = torch.exp(scores - level.masked_fill(level == -math.inf, 0.0))
                cotangent = weights * (raw - slope[some, :, rows])
            found.value[some, :, columns] += weights.mT @ pull
            tile = _inputs(problem, some, rows, columns) | {SEED: _seed(problem, cotangent)}
            _collect(problem, adjoint, run(program, tile, 3), found, (some, rows, columns))
    return found


def _seed(problem: Problem, cotangent: Tensor) -> Tensor:
    """The cotangent of the core's output from that of each head, (b, H, q, k); heads that share a number add up."""
    output = problem.core.values[problem.core.outputs[0]]
    seed = cotangent.permute(0, 2, 3, 1)
    seed = seed.sum(-1, keepdim=True) if output.size == 1 else seed
    return seed.reshape(*seed.shape[:3], *output.shape)


def _collect(
    problem: Problem, adjoint: Adjoint, results: list[Tensor], found: Gradients, tile: tuple[slice, slice, slice]
) -> None:
    """Add a tile's cotangents to the gradients, summed over the pairs that share an input."""
    some, rows, columns = tile
    _, *direct = results[: 1 + len(adjoint.inputs)]
    for name, cotangent in zip(adjoint.inputs, direct, strict=True):
        if name in problem.query:
            found.inputs[name][some, rows] += cotangent.sum(2)
        elif name in problem.source:
            found.inputs[name][some, columns] += cotangent.sum(1)
        else:
            found.inputs[name] += cotangent.sum((0, 1, 2))
    products = results[1 + len(adjoint.inputs) :]
    for place, product in enumerate(adjoint.products):
        left, right = products[2 * place], products[2 * place + 1]
        front = torch.broadcast_shapes(left.shape[:-1], right.shape[:-1])
        left, right = (side.expand(*front, side.shape[-1]).flatten(0, -2) for side in (left, right))
        found.inputs[product.matrix] += left.mT @ right


def _kernel(problem: Problem, some: slice, rows: slice, columns: slice) -> Tensor:
    """The core on a tile: (b, H, q, k)."""
    (kernel,) = run(problem.core, _inputs(problem, some, rows, columns), 3)
    count = len(range(problem.batch)[some])
    kernel = kernel if kernel.dim() == 4 else kernel.unsqueeze(-1)
    kernel = kernel.expand(count, rows.stop - rows.start, columns.stop - columns.start, problem.heads)
    return kernel.permute(0, 3, 1, 2)


def _inputs(problem: Problem, some: slice, rows: slice, columns: slice) -> dict[str, Tensor]:
    """The core's inputs on a tile, with three leading axes."""
    query = {name: tensor[some, rows].unsqueeze(2) for name, tensor in problem.query.items()}
    source = {name: tensor[some, columns].unsqueeze(1) for name, tensor in problem.source.items()}
    return query | source | {name: tensor[None, None, None] for name, tensor in problem.shared.items()}


def _masked(problem: Problem, kernel: Tensor, some: slice, rows: slice, columns: slice, number: float) -> Tensor:
    allowed = problem.allowed(rows, columns, some)
    return kernel if allowed is None else kernel.masked_fill(~allowed.unsqueeze(1), number)


def _size(problem: Problem, program: Program) -> int:
    """Pairs in a tile."""
    pairs = (value.size for value, side in zip(program.values, program.sides, strict=True) if side == PAIR)
    return max(1, TILE // max(problem.heads, *pairs, 1))


def _rows(problem: Problem, program: Program) -> Iterator[tuple[slice, slice]]:
    """Blocks of (batch, queries): whole samples where they are small."""
    if not problem.value.shape[1] * problem.batch * problem.queries:
        return
    size = _size(problem, program)
    samples = max(1, size // max(1, problem.queries * problem.sources))
    queries = max(1, min(problem.queries, size // max(1, min(problem.sources, 128))))
    for first in range(0, problem.batch, samples):
        for start in range(0, problem.queries, queries):
            some = slice(first, min(first + samples, problem.batch))
            yield some, slice(start, min(start + queries, problem.queries))


def _columns(problem: Problem, program: Program, some: slice, rows: slice) -> Iterator[slice]:
    """Blocks of sources that a block of queries may see."""
    pairs = len(range(problem.batch)[some]) * (rows.stop - rows.start)
    step = max(1, _size(problem, program) // pairs)
    first, last = problem.span(rows.start, rows.stop)
    for start in range(first, last, step):
        yield slice(start, min(start + step, last))
