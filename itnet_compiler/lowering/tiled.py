"""Lowering ``tiled``: kernels that are functions of a pair, evaluated tile by tile and never stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from torch import Tensor

from ..ir.domain import Domain, reach
from ..ir.kernel import Kernel, Spec
from ..ir.mlp import Mlp
from ..ir.pair.builder import Builder
from ..ir.pair.dense import run
from ..ir.pair.program import QUERY, SHARED, SOURCE, Program
from ..ir.pair.split import Stages, distribute, stages
from ..ir.pairwise import Pairwise
from .base import Lowered, Lowering, Support

__all__ = ["Tiled", "integrate"]

LOG_MEASURE = "log_measure"


class Tiled(Lowering):
    """Runs a pair program through ``torch.ops.itnet.pair_integral``: extra memory proportional to N + M."""

    name = "tiled"

    def supports(self, spec: Spec) -> Support:
        if not isinstance(spec.kernel, (Mlp, Pairwise)):
            return Support((f"the {spec.kernel.family} kernel is no function of a pair of positions",))
        try:
            reach(spec.domain)
        except TypeError as error:
            return Support((str(error),))
        return Support()

    def build(self, spec: Spec) -> Lowered:
        call = _Call(spec.kernel, spec.domain)
        arguments = ", ".join(f"{role}={role}" for role in spec.operands)
        return Lowered(spec.operands, f"tiled({arguments})", {"tiled": call}, text=call.source())


@dataclass(frozen=True)
class _Call:
    """The tiled integral of one node."""

    kernel: Kernel
    domain: Domain

    def __call__(self, **operands: Any) -> Tensor:
        flat = {role: tensor for role, tensor in _flattened(operands).items() if role not in _FRAME}
        assert isinstance(self.kernel, (Mlp, Pairwise))
        known: tuple[Any, ...] = (
            tuple(flat),
            list(flat.values()),
            operands["value"],
            *(operands.get(role) for role in _FRAME[1:]),
            self.kernel.normalise,
            *reach(self.domain),
        )
        if isinstance(self.kernel, Mlp):
            return _integrate_mlp(self.kernel.depth, *known)
        return _integrate(self.text, *known)

    @cached_property
    def text(self) -> str:
        """The program of a kernel that is one."""
        return str(self.kernel.program) if isinstance(self.kernel, Pairwise) else ""

    def source(self) -> str:
        """The program of a pair where its shapes are known."""
        if isinstance(self.kernel, Pairwise):
            return _listing(stages(distribute(self.kernel.program)))
        return f"{self.kernel.describe()}: the program of a pair depends on the shapes of the operands\n"


_FRAME = ("value", "measure", "mask", "like_queries")


def _flattened(operands: Mapping[str, Any]) -> dict[str, Tensor]:
    """Operands by role; those of a list have its role and their place: ``layers_0`` …"""
    flat: dict[str, Tensor] = {}
    for role, operand in operands.items():
        if isinstance(operand, (list, tuple)):
            flat.update((f"{role}_{place}", tensor) for place, tensor in enumerate(operand))
        elif operand is not None:
            flat[role] = operand
    return flat


def integrate(
    program: str,
    inputs: Mapping[str, Tensor],
    value: Tensor,
    *,
    measure: Tensor | None = None,
    mask: Tensor | None = None,
    like_queries: Tensor | None = None,
    normalise: bool = False,
    domain: Domain,
) -> Tensor:
    """y_i = Σ_j w_j·κ(i, j)·v_j, or with the softmax of κ + log w, without storing κ.

    What the program computes of one side alone is computed here, once a position; the rest is for the tiles.

    Args:
        program: κ, the text of a pair program of one output.
        inputs: By name: of the query (1 or B, N, *shape), of the source (1 or B, M, *shape), shared (*shape).
        value: v, (B, H, M, V).
        measure: w, (1 or B, M). Where the weights are normalised, a source of measure 0 takes no part, and none may be
            negative; the gradient of a measure of 0 is 0 there.
        mask: bool, (1 or B, 1 or N, M).
        like_queries: (…, N, any), where the program has no input of the query.
        normalise: Whether κ is a score.
        domain: ``Keys`` or ``Band``.

    Returns:
        y, (B, H, N, V), in the dtype of ``value``.
    """
    names, tensors = tuple(inputs), list(inputs.values())
    return _integrate(program, names, tensors, value, measure, mask, like_queries, normalise, *reach(domain))


@torch.compiler.allow_in_graph
def _integrate_mlp(depth: int, names: tuple[str, ...], tensors: list[Tensor], *rest: Any) -> Tensor:
    """``_integrate`` for the program of an ``Mlp``."""
    shapes = {name: tuple(tensor.shape) for name, tensor in zip(names, tensors, strict=True)}
    return _integrate(str(Mlp(depth).pair_program(shapes)), names, tensors, *rest)


@torch.compiler.allow_in_graph
def _integrate(
    text: str,
    names: tuple[str, ...],
    tensors: list[Tensor],
    value: Tensor,
    measure: Tensor | None,
    mask: Tensor | None,
    like_queries: Tensor | None,
    normalise: bool,
    before: int | None,
    after: int | None,
) -> Tensor:
    """``integrate``; torch.compile sees which operators it calls, and not how they are chosen."""
    inputs = dict(zip(names, tensors, strict=True))
    if measure is not None and not normalise:
        value = value * measure[:, None, :, None].to(value.dtype)
    elif measure is not None:
        positive = measure > 0
        inputs[LOG_MEASURE] = torch.where(positive, measure, 1.0).log().masked_fill(~positive, -torch.inf)
        text = _with_measure(text)
    program = Program.parse(text)
    cut = stages(distribute(program))
    batch = value.shape[0]
    groups: dict[int, list[Tensor]] = {}
    for side in (QUERY, SOURCE, SHARED):
        part = cut.of(side)
        given = {item.name: _placed(item.side, inputs[item.name], side) for item in part.inputs}
        made = run(part, given, 0 if side == SHARED else 2)
        groups[side] = made if side == SHARED else [tensor.expand(batch, *tensor.shape[1:]) for tensor in made]
    queries = groups[QUERY][0].shape[1] if groups[QUERY] else _count(program, inputs, like_queries)
    bounds = (-1 if bound is None else bound for bound in (before, after))
    output, _ = torch.ops.itnet.pair_integral(
        value, groups[QUERY], groups[SOURCE], groups[SHARED], mask, queries, str(cut.core), normalise, *bounds
    )
    return output


def _placed(own: int, tensor: Tensor, side: int) -> Tensor:
    """A shared tensor among those of a side has leading axes of size 1."""
    return tensor[None, None] if own == SHARED and side != SHARED else tensor


def _count(program: Program, inputs: Mapping[str, Tensor], like_queries: Tensor | None) -> int:
    for item in program.inputs:
        if item.side == QUERY:
            return inputs[item.name].shape[1]
    assert like_queries is not None
    return like_queries.shape[-2]


@lru_cache(maxsize=256)
def _with_measure(text: str) -> str:
    """κ + log w."""
    b, program = Builder(), Program.parse(text)
    for value in program.values:
        b.emit(value.op, value.args, value.shape, value.attrs)
    (output,) = program.outputs
    return str(b.program([b.add(output, b.input(LOG_MEASURE, SOURCE, ()))]))


def _listing(cut: Stages) -> str:
    parts = {"once": cut.shared, "of each query": cut.query, "of each source": cut.source, "of each pair": cut.core}
    return "\n\n".join(f"# {name}\n{part.describe()}" for name, part in parts.items() if part.outputs) + "\n"
