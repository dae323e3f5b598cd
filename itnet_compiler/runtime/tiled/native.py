"""The tiled integral in machine code for this CPU, in float32: packs the tensors, shares the rows among threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ...ir.pair.adjoint import Adjoint, adjoint
from ...ir.pair.program import QUERY, SHARED, SOURCE, Program
from ...ir.pair.split import stages
from . import vector_backward, vector_forward, vector_text
from .evaluated import evaluated
from .machine import compiled, lanes
from .problem import Gradients, Problem
from .vector_backward import Targets
from .vector_code import GROUPS, unsupported
from .vector_kernel import NUMBERS, Shape

__all__ = ["backward", "code", "forward", "refusals"]

# Rows are cut into this many pieces a batch at least, so that results do not depend on the number of threads.
PIECES = 8
# Pieces of fewer pairs than this are not worth a thread.
_SMALLEST = 1 << 14


def refusals(problem: Problem) -> tuple[str, ...]:
    """Why this back end cannot run a call; nothing if it can."""
    reasons = []
    if problem.value.dtype != torch.float32:
        reasons.append("float64 runs in plain torch")
    missing = unsupported(problem.core)
    if missing:
        reasons.append(f"no vector form of {', '.join(sorted(missing))}")
    return tuple(reasons)


def code(problem: Problem) -> str:
    """The loops of both kernels in words; ``ITNET_DEBUG=4`` shows the LLVM code when it is written."""
    reverse = adjoint(problem.core, frozenset(problem.query | problem.source | problem.shared))
    core, shape = stages(reverse.program).core, _shape(problem)
    forward_part = vector_text.forward_words(problem.core, shape)
    backward_part = vector_text.backward_words(core, shape, _targets(problem, core, reverse))
    return f"# forward, machine code from LLVM\n{forward_part}\n# backward, machine code from LLVM\n{backward_part}"


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """As ``plain.forward``."""
    batch, heads, _, width = problem.value.shape
    shape, packed = _shape(problem), _Packed.of(problem, problem.core, {})
    kernel, scratch = _forward_code(problem.core, shape)
    output = torch.empty((batch, problem.queries, heads, width))
    normaliser = torch.empty((batch, problem.queries, heads) if problem.normalise else (0,))

    def work(piece: _Piece) -> None:
        room = torch.empty(scratch)
        kernel(
            *packed.addresses(piece.sample),
            _row(output, piece.sample),
            _row(normaliser, piece.sample) if problem.normalise else 0,
            room.data_ptr(),
            *packed.numbers(problem, piece),
        )

    _run(work, _pieces(problem))
    return output.transpose(1, 2), normaliser.transpose(1, 2) if problem.normalise else normaliser


def backward(problem: Problem, adjoint: Adjoint, output: Tensor, normaliser: Tensor, grad: Tensor) -> Gradients:
    """As ``plain.backward``."""
    batch, heads, sources, width = problem.value.shape
    cut = stages(adjoint.program)
    given = evaluated(cut, problem)
    targets, shape = _targets(problem, cut.core, adjoint), _shape(problem)
    kernel, scratch = _backward_code(cut.core, shape, targets)
    packed = _Packed.of(problem, cut.core, given)
    grad = grad.transpose(1, 2).contiguous()
    level = slope = normaliser
    if problem.normalise:
        level = normaliser.masked_fill(normaliser == -math.inf, 0.0).transpose(1, 2).contiguous()
        slope = (grad * output.transpose(1, 2)).sum(-1)
    pieces = _pieces(problem)
    share = max(1, len(pieces) // max(1, batch))
    query_width, source_width, shared_width = targets.widths
    rows = torch.zeros((batch, problem.queries, query_width))
    tiles = torch.zeros((batch, share, packed.tiles, source_width * packed.tile))
    values = torch.zeros((batch, share, packed.tiles, heads * width * packed.tile))
    common = torch.zeros((len(pieces), shared_width), dtype=torch.float64)

    def work(piece: _Piece) -> None:
        room = torch.empty(scratch)
        kernel(
            *packed.addresses(piece.sample),
            _row(grad, piece.sample),
            _row(level, piece.sample) if problem.normalise else 0,
            _row(slope, piece.sample) if problem.normalise else 0,
            _row(rows, piece.sample),
            tiles[piece.sample, piece.number].data_ptr(),
            values[piece.sample, piece.number].data_ptr(),
            common[piece.place].data_ptr(),
            room.data_ptr(),
            *packed.numbers(problem, piece),
        )

    _run(work, pieces)
    tile = packed.tile
    found = {QUERY: rows, SOURCE: _untiled(tiles, tile, sources), SHARED: common.sum(0).float()}
    whole = _untiled(values, tile, sources).unflatten(-1, (heads, width)).transpose(1, 2)
    return Gradients(whole, _named(problem, adjoint, targets, found))


def _untiled(tiles: Tensor, tile: int, sources: int) -> Tensor:
    """(B, M, width) from what each piece of a sample has found, (B, pieces, tiles, width·tile)."""
    width = tiles.shape[-1] // tile
    return tiles.sum(1).unflatten(-1, (width, tile)).transpose(2, 3).flatten(1, 2)[:, :sources]


def _named(problem: Problem, adjoint: Adjoint, targets: Targets, found: dict[int, Tensor]) -> dict[str, Tensor]:
    """Gradients by the name of the input."""
    known = problem.query | problem.source | problem.shared
    gradients: dict[str, Tensor] = {}

    def put(name: str, side: int, offset: int) -> None:
        lead = 0 if side == SHARED else 2
        shape = known[name].shape[lead:]
        part = found[side][..., offset : offset + math.prod(shape)].unflatten(-1, shape or (1,))
        part = part if shape else part.squeeze(-1)
        gradients[name] = gradients[name] + part if name in gradients else part.clone()  # results share no memory

    for side, group in ((QUERY, targets.query), (SOURCE, targets.source), (SHARED, targets.shared)):
        for place, offset in group:
            put(adjoint.inputs[place - 1], side, offset)
    for product, (_, offset) in zip(adjoint.products, targets.products, strict=True):
        put(product.matrix, SHARED, offset)
    return gradients


def _shape(problem: Problem) -> Shape:
    heads, width = problem.value.shape[1], problem.value.shape[3]
    size = lanes()
    return Shape(heads, width, problem.normalise, problem.mask is not None, size, 2 if size == 8 else 4)


@lru_cache(maxsize=256)
def _forward_code(core: Program, shape: Shape) -> tuple[Callable[..., None], int]:
    count = len(vector_forward.POINTERS) + len(NUMBERS)
    return compiled(f"{core}\n{shape}", count, lambda: vector_forward.write_forward(core, shape))


@lru_cache(maxsize=256)
def _backward_code(core: Program, shape: Shape, targets: Targets) -> tuple[Callable[..., None], int]:
    count = len(vector_backward.POINTERS) + len(NUMBERS)
    key = f"{core}\n{shape}\n{targets}"
    return compiled(key, count, lambda: vector_backward.write_backward(core, shape, targets))


@lru_cache(maxsize=256)
def _targets_of(core: Program, adjoint: Adjoint, sides: tuple[tuple[str, int], ...]) -> Targets:
    """Where each output of the reverse program goes: gradients of a side lie one behind the other in its order."""
    side_of = dict(sides)
    groups: dict[int, list[tuple[int, int]]] = {QUERY: [], SOURCE: [], SHARED: []}
    widths = {QUERY: 0, SOURCE: 0, SHARED: 0}
    for place, name in enumerate(adjoint.inputs):
        side = side_of[name]
        groups[side].append((1 + place, widths[side]))
        widths[side] += core.values[core.outputs[1 + place]].size
    products = []
    first = 1 + len(adjoint.inputs)
    for place in range(len(adjoint.products)):
        left, right = (core.values[core.outputs[first + 2 * place + i]].shape[-1] for i in (0, 1))
        products.append((first + 2 * place, widths[SHARED]))
        widths[SHARED] += left * right
    query, source, shared = (tuple(groups[side]) for side in (QUERY, SOURCE, SHARED))
    return Targets(query, source, shared, tuple(products), (widths[QUERY], widths[SOURCE], widths[SHARED]))


def _targets(problem: Problem, core: Program, adjoint: Adjoint) -> Targets:
    groups = ((problem.query, QUERY), (problem.source, SOURCE), (problem.shared, SHARED))
    return _targets_of(core, adjoint, tuple((name, side) for group, side in groups for name in group))


@dataclass(frozen=True)
class _Piece:
    """Some rows of a sample: place among all pieces, number among those of the sample."""

    place: int
    sample: int
    number: int
    start: int
    stop: int


def _pieces(problem: Problem) -> list[_Piece]:
    """All rows, in pieces that depend on the sizes alone."""
    share = max(1, math.ceil(PIECES / max(1, problem.batch)))
    share = max(1, min(share, problem.queries * problem.sources // _SMALLEST))
    step = math.ceil(problem.queries / share)
    return [
        _Piece(sample * share + number, sample, number, number * step, min((number + 1) * step, problem.queries))
        for sample in range(problem.batch)
        for number in range(share)
    ]


def _run(work: Callable[[_Piece], None], pieces: Sequence[_Piece]) -> None:
    threads = min(torch.get_num_threads(), len(pieces))
    if threads <= 1:
        for piece in pieces:
            work(piece)
        return
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(work, pieces):
            pass


def _row(tensor: Tensor, sample: int) -> int:
    return tensor.data_ptr() + sample * tensor.stride(0) * tensor.element_size()


@dataclass(frozen=True)
class _Packed:
    """The tensors of a call as the kernels read them.

    Attributes:
        query: (B, N, width).
        source, value: (B, tiles, width, tile): sources lie next to each other; the last tile repeats the last source.
        shared: (width,).
        mask: bytes (1 or B, 1 or N, tiles·tile), or None.
        tiles, tile: Number of tiles, sources in one.
    """

    query: Tensor
    source: Tensor
    shared: Tensor
    value: Tensor
    mask: Tensor | None
    tiles: int
    tile: int

    @staticmethod
    def of(problem: Problem, core: Program, given: dict[str, Tensor]) -> _Packed:
        known = problem.query | problem.source | problem.shared | given
        batch, sources = problem.batch, problem.sources
        tile = GROUPS * lanes()
        tiles = math.ceil(sources / tile)

        def joined(side: int, lead: tuple[int, ...]) -> Tensor:
            parts = [known[item.name] for item in core.inputs if item.side == side]
            flat = [part.expand((*lead, *part.shape[len(lead) :])).reshape(*lead, -1) for part in parts if part.numel()]
            return torch.cat(flat, -1).contiguous() if flat else torch.empty((*lead, 0))

        def tiled(rows: Tensor) -> Tensor:
            short = tiles * tile - sources
            if short:
                rows = torch.cat([rows, rows[:, -1:].expand(-1, short, -1)], 1)
            return rows.reshape(batch, tiles, tile, rows.shape[-1]).transpose(2, 3).contiguous()

        mask = problem.mask
        if mask is not None:
            mask = torch.nn.functional.pad(mask.to(torch.uint8), (0, tiles * tile - sources)).contiguous()
        return _Packed(
            joined(QUERY, (batch, problem.queries)),
            tiled(joined(SOURCE, (batch, sources))),
            joined(SHARED, ()),
            tiled(problem.value.transpose(1, 2).flatten(2)),
            mask,
            tiles,
            tile,
        )

    def addresses(self, sample: int) -> tuple[int, int, int, int, int]:
        """Of query, source, shared, value and mask of a sample."""
        mask = 0
        if self.mask is not None:
            mask = _row(self.mask, sample if self.mask.shape[0] > 1 else 0)
        source, value = _row(self.source, sample), _row(self.value, sample)
        return _row(self.query, sample), source, self.shared.data_ptr(), value, mask

    def numbers(self, problem: Problem, piece: _Piece) -> tuple[int, int, int, int, int, int]:
        """Sources, start, stop, before, after, bytes from one row of the mask to the next."""
        stride = self.mask.stride(1) if self.mask is not None and self.mask.shape[1] > 1 else 0
        before, after = (-1 if bound is None else bound for bound in (problem.before, problem.after))
        return problem.sources, piece.start, piece.stop, before, after, stride
