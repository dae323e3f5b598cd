"""The tiled integral in Triton: kernels generated from the pair program.

One kernel forward; backward one each for the gradients of the queries, of the sources and of what is shared, which
computes the kernel again: together they would need more registers than there are. Matrix products of float32 are those
of IEEE float32; where torch may use TF32 for them (``torch.backends.cuda.matmul.fp32_precision``), they are sums of
three products of TF32 numbers on tensor cores. Sums have a fixed order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType

import torch
from torch import Tensor

from ...ir.pair.adjoint import Adjoint, adjoint
from ...ir.pair.program import QUERY, SHARED, SOURCE, Program
from ...ir.pair.split import Stages, stages
from ..device import device_of
from .block_code import unsupported
from .block_kernels import PRELUDE, Kind, Reverse, backward_text, forward_text, shared_room
from .block_sizes import Launch, blocks
from .evaluated import evaluated
from .files import module_of
from .problem import Gradients, Problem

__all__ = [
    "backward",
    "code",
    "forward",
    "kernels",
    "precision",
    "precision_of_products",
    "refusals",
    "reverse_programs",
    "wanted_of",
]


def refusals(problem: Problem) -> tuple[str, ...]:
    """Why Triton cannot run a call; nothing if it can."""
    if problem.value.dtype != torch.float32:
        return ("float64 runs in plain torch",)
    reasons = unsupported(problem.core)
    if reasons:
        return reasons
    plans = reverse_programs(problem.core, wanted_of(problem))
    return tuple(dict.fromkeys(reason for plan in plans for reason in unsupported(plan.program)))


def wanted_of(problem: Problem) -> frozenset[str]:
    """All inputs of the core."""
    return frozenset(problem.query | problem.source | problem.shared)


def code(problem: Problem) -> str:
    """The Triton source of all kernels, and the blocks that they run in where these are not tuned."""
    kind, exact = _kind(problem), precision(problem)
    parts = [
        f"# forward, estimated {blocks(problem.core, 'forward', exact)}\n{PRELUDE}{forward_text(problem.core, kind)}"
    ]
    for what, plan in zip(_BACKWARD, reverse_programs(problem.core, wanted_of(problem)), strict=True):
        side = SOURCE if what == "source" else QUERY
        if side == SOURCE or plan.names_of_rows or plan.names_of_shared:
            text = backward_text(plan.reverse, kind, side)
            parts.append(f"# gradients: {what}, estimated {blocks(plan.program, what, exact)}\n{text}")
    return "\n\n".join(parts)


def forward(problem: Problem) -> tuple[Tensor, Tensor]:
    """As ``plain.forward``."""
    batch, heads, _, width = problem.value.shape
    kind, packed = _kind(problem), _Packed.of(problem)
    given = problem.query | problem.source | problem.shared
    output = problem.value.new_empty((batch, problem.queries, heads, width))
    normaliser = problem.value.new_empty((batch, problem.queries, heads) if problem.normalise else (0,))
    kernel = kernels(forward_text(problem.core, kind)).forward
    launch = Launch(kernel, problem.core, "forward", precision(problem), problem.queries, problem.value)
    with device_of(problem.value):
        rows = packed.rows(problem, problem.core, given)
        launch(batch, (*rows, output, normaliser, *packed.numbers(problem)))
    return output.transpose(1, 2), normaliser.transpose(1, 2) if problem.normalise else normaliser


def backward(problem: Problem, found: Adjoint, output: Tensor, normaliser: Tensor, grad: Tensor) -> Gradients:
    """As ``plain.backward``."""
    wanted = frozenset((*found.inputs, *(product.matrix for product in found.products)))
    kind, packed = _kind(problem), _Packed.of(problem)
    grad = grad.transpose(1, 2).contiguous()
    level = slope = grad
    if problem.normalise:
        level = normaliser.masked_fill(normaliser == -math.inf, 0.0).transpose(1, 2).contiguous()
        slope = (grad * output.transpose(1, 2)).sum(-1)
    gradients: dict[str, Tensor] = {}
    value = problem.value.new_empty((problem.batch, problem.sources, problem.heads, problem.value.shape[3]))
    for what, plan in zip(_BACKWARD, reverse_programs(problem.core, wanted), strict=True):
        side = SOURCE if what == "source" else QUERY
        if side == QUERY and not (plan.names_of_rows or plan.names_of_shared):
            continue
        given = evaluated(plan.cut, problem)
        count = problem.queries if side == QUERY else problem.sources
        rows = problem.value.new_empty((problem.batch, count, sum(size for _, _, size in plan.names_of_rows)))
        written = kernels(backward_text(plan.reverse, kind, side))
        kernel = written.backward_query if side == QUERY else written.backward_source
        launch = Launch(kernel, plan.program, what, precision(problem), count, problem.value)
        common = problem.value.new_zeros((launch.programs() * problem.batch, shared_room(plan.reverse)))
        with device_of(problem.value):
            given_rows = packed.rows(problem, plan.program, given)
            grads = (grad, level, slope, rows, common if side == QUERY else value)
            launch(problem.batch, (*given_rows, *grads, *packed.numbers(problem)))
        plan.collect(problem, rows, common.double().sum(0).float(), gradients)
    return Gradients(value.transpose(1, 2), gradients)


@dataclass(frozen=True)
class _Plan:
    """A reverse program of one side, in stages, and the names of the gradients that it makes.

    Attributes:
        cut: Stages of the reverse program; its core is ``program``.
        reverse: For the code generator.
        names_of_rows: (name, offset, size) in the rows of the side.
        names_of_shared: The same in the shared gradient, once for each part that it is the sum of.
    """

    cut: Stages
    reverse: Reverse
    names_of_rows: tuple[tuple[str, int, int], ...]
    names_of_shared: tuple[tuple[str, int, int], ...]

    @property
    def program(self) -> Program:
        return self.reverse.program

    def collect(self, problem: Problem, rows: Tensor, common: Tensor, gradients: dict[str, Tensor]) -> None:
        """Put the gradients under their names."""
        known = problem.query | problem.source | problem.shared
        for name, offset, size in self.names_of_rows:
            gradients[name] = rows[..., offset : offset + size].reshape(known[name].shape)
        for name, offset, size in self.names_of_shared:
            part = common[offset : offset + size].reshape(known[name].shape)
            gradients[name] = gradients[name] + part if name in gradients else part


# What each backward kernel finds the gradients of.
_BACKWARD = {"query": QUERY, "source": SOURCE, "shared": SHARED}


@lru_cache(maxsize=256)
def reverse_programs(core: Program, wanted: frozenset[str]) -> tuple[_Plan, ...]:
    """The reverse programs for the inputs of each side, in the order of the backward kernels."""
    sides = {item.name: item.side for item in core.inputs}
    return tuple(_plan(core, frozenset(n for n in wanted if sides[n] == side), sides) for side in _BACKWARD.values())


def _plan(core: Program, wanted: frozenset[str], sides: dict[str, int]) -> _Plan:
    found = adjoint(core, wanted)
    cut = stages(found.program)
    values, outputs = cut.core.values, cut.core.outputs
    rows, shared, names_of_rows, names_of_shared = [], [], [], []
    width = room = 0
    for place, name in enumerate(found.inputs, start=1):
        size = values[outputs[place]].size
        if sides[name] == SHARED:
            shared.append((place, room))
            names_of_shared.append((name, room, size))
            room += size
        else:
            rows.append((place, width))
            names_of_rows.append((name, width, size))
            width += size
    products = []
    for number, product in enumerate(found.products):
        place = 1 + len(found.inputs) + 2 * number
        size = values[outputs[place]].shape[-1] * values[outputs[place + 1]].shape[-1]
        products.append((place, room))
        names_of_shared.append((product.matrix, room, size))
        room += size
    reverse = Reverse(cut.core, tuple(rows), tuple(shared), tuple(products))
    return _Plan(cut, reverse, tuple(names_of_rows), tuple(names_of_shared))


def _kind(problem: Problem) -> Kind:
    masked, half = problem.mask is not None, problem.half is not None
    return Kind(problem.heads, int(problem.value.shape[3]), problem.normalise, masked, half)


def precision(problem: Problem) -> str:
    """How float32 numbers are multiplied as matrices; of no effect on half precision, which tensor cores take."""
    return "tf32x3" if problem.half else precision_of_products()


def precision_of_products() -> str:
    """How Triton multiplies matrices of float32 numbers: three products of TF32 numbers where torch may use TF32."""
    return "tf32x3" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


@lru_cache(maxsize=256)
def kernels(text: str) -> ModuleType:
    """The Triton functions of a source text."""
    return module_of("tiled", PRELUDE + text)


@dataclass(frozen=True)
class _Packed:
    """Tensors of a call that all kernels read: values (B, M, H·V) and the mask as bytes."""

    value: Tensor
    mask: Tensor

    @staticmethod
    def of(problem: Problem) -> _Packed:
        value = problem.value.transpose(1, 2).to(problem.half or problem.value.dtype).contiguous()
        mask = value if problem.mask is None else problem.mask.to(torch.uint8).contiguous()
        return _Packed(value, mask)

    def rows(self, problem: Problem, program: Program, given: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Inputs of the query (B, N, width), of the source (B, M, width), shared (width); value; mask."""
        leads = {QUERY: (problem.batch, problem.queries), SOURCE: (problem.batch, problem.sources), SHARED: ()}
        joined = []
        for side in (QUERY, SOURCE, SHARED):
            lead = leads[side]
            parts = [given[item.name] for item in program.inputs if item.side == side]
            flat = [part.expand((*lead, *part.shape[len(lead) :])).reshape(*lead, -1) for part in parts]
            joined.append(torch.cat(flat, -1).contiguous() if flat else problem.value.new_empty((*lead, 1)))
        return (*joined, self.value, self.mask)

    def numbers(self, problem: Problem) -> tuple[int, ...]:
        """Queries, sources, before, after, the strides of the mask, and the order of size, for tuning."""
        mask, bounds = problem.mask, (problem.before, problem.after)
        batch = self.mask.stride(0) if mask is not None and mask.shape[0] > 1 else 0
        row = self.mask.stride(1) if mask is not None and mask.shape[1] > 1 else 0
        order = max(16, 1 << (max(problem.queries, problem.sources) - 1).bit_length())
        known = (-1 if bound is None else bound for bound in bounds)
        return (problem.queries, problem.sources, *known, batch, row, order)
