"""Lowering ``tiled``: kernels that are functions of a pair, evaluated tile by tile and never stored."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..ir.domain import Domain, reach
from ..ir.kernel import Kernel, Spec
from ..ir.mlp import Mlp
from ..ir.pair.builder import Builder
from ..ir.pair.program import QUERY, SOURCE, Program
from ..ir.pair.split import distribute, stages
from ..ir.pairwise import Pairwise
from ..ir.softmax import Softmax
from .base import Lowered, Lowering, Support

__all__ = ["Tiled", "flattened", "integrate", "listing", "written"]


class Tiled(Lowering):
    """Runs a pair program through ``torch.ops.itnet.integrate``: extra memory proportional to N + M."""

    name = "tiled"
    rank = 3

    def supports(self, spec: Spec) -> Support:
        if isinstance(spec.kernel, Softmax):
            return Support(tuple(_against_attention(spec, spec.kernel)))
        if not isinstance(spec.kernel, (Mlp, Pairwise)):
            return Support((f"no pair program computes the {type(spec.kernel).__name__} kernel",))
        try:
            reach(spec.domain)
        except TypeError as error:
            return Support((str(error),))
        return Support()

    def build(self, spec: Spec) -> Lowered:
        call = (
            _Attention(spec.kernel, spec.domain)
            if isinstance(spec.kernel, Softmax)
            else _Call(spec.kernel, spec.domain)
        )
        arguments = ", ".join(f"{role}={role}" for role in spec.operands)
        return Lowered(spec.operands, f"tiled({arguments})", {"tiled": call}, text=call.source(), write=call.code)


def _against_attention(spec: Spec, kernel: Softmax) -> list[str]:
    """Why attention is not run tiled."""
    reasons = ["dropout draws a number for every pair"] if kernel.dropout else []
    return reasons + (["its mask holds a number for every pair, and is stored"] if "mask" in spec.operands else [])


@dataclass(frozen=True)
class _Call:
    """The tiled integral of one node."""

    kernel: Kernel
    domain: Domain
    programs: dict[Any, tuple[str, tuple[str, ...]]] = field(default_factory=dict, compare=False, repr=False)

    def __call__(self, **operands: Any) -> Tensor:
        flat = flattened(operands)
        text, names = self._program(flat)
        return integrate(
            text,
            [flat[name] for name in names],
            flat["value"],
            measure=flat.get("measure"),
            mask=flat.get("mask"),
            like_queries=flat.get("like_queries"),
            normalise=self._normalise,
            domain=self.domain,
        )

    @property
    def _normalise(self) -> bool:
        assert isinstance(self.kernel, (Mlp, Pairwise))
        return self.kernel.normalise

    def _program(self, flat: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
        """Text of the program for operands of these shapes, and its inputs in order."""
        assert isinstance(self.kernel, (Mlp, Pairwise))
        shapes = self.kernel.shapes_of_pair(flat)
        if shapes not in self.programs:
            program = self.kernel.pair_program(dict(shapes))
            self.programs[shapes] = str(program), tuple(item.name for item in program.inputs)
        return self.programs[shapes]

    def code(self, examples: Mapping[str, Any]) -> str:
        """What runs operands like these."""
        flat = flattened(examples)
        return written(self._program(flat)[0], flat, self._normalise)

    def source(self) -> str:
        """The program of a pair where its shapes are known."""
        if not isinstance(self.kernel, Pairwise):
            return f"{self.kernel.describe()}: the program of a pair depends on the shapes of the operands\n"
        return listing(self.kernel.program)


@dataclass(frozen=True)
class _Attention:
    """Softmax attention as the integral of a pair program: heads are samples, and a score is a product."""

    kernel: Softmax
    domain: Domain

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        key, value = (self.kernel.all_heads(tensor, query) for tensor in (key, value))
        lead = torch.broadcast_shapes(query.shape[:-2], key.shape[:-2], value.shape[:-2])
        queries, keys, values = (
            tensor.expand(*lead, *tensor.shape[-2:]).reshape(math.prod(lead), *tensor.shape[-2:])
            for tensor in (query, key, value)
        )
        text = self._program(int(query.shape[-1]))
        found = integrate(text, [queries, keys], values.unsqueeze(1), normalise=True, domain=self.domain)
        return found.reshape(*lead, query.shape[-2], value.shape[-1])

    def _program(self, width: int) -> str:
        return _product(width, 1.0 / math.sqrt(width) if self.kernel.scale is None else self.kernel.scale)

    def code(self, examples: Mapping[str, Any]) -> str:
        """What runs operands like these."""
        value = examples["value"]
        each = replace(value, shape=(math.prod(value.shape[:-2]), 1, *value.shape[-2:]))
        return written(self._program(examples["query"].shape[-1]), {"value": each}, True)

    def source(self) -> str:
        """The program of a pair depends on the width of the heads."""
        return "scale·⟨q_i, k_j⟩ of each pair, softmax over j; the program depends on the width of the heads\n"


@lru_cache(maxsize=64)
def _product(width: int, scale: float) -> str:
    """scale·⟨q, k⟩."""
    b = Builder()
    query = b.mul(b.input("query", QUERY, (width,)), b.constant(scale))
    return str(b.program([b.sum(b.mul(query, b.input("key", SOURCE, (width,))), [0])]))


def listing(program: Program) -> str:
    """A pair program in its stages, for readers."""
    cut = stages(distribute(program))
    parts = {"once": cut.shared, "of each query": cut.query, "of each source": cut.source, "of each pair": cut.core}
    return "\n\n".join(f"# {name}\n{part.describe()}" for name, part in parts.items() if part.outputs) + "\n"


def flattened(operands: Mapping[str, Any]) -> dict[str, Tensor]:
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
    inputs: list[Tensor],
    value: Tensor,
    *,
    measure: Tensor | None = None,
    mask: Tensor | None = None,
    like_queries: Tensor | None = None,
    normalise: bool = False,
    domain: Domain,
) -> Tensor:
    """``torch.ops.itnet.integrate`` over a domain of keys."""
    before, after = (-1 if bound is None else bound for bound in reach(domain))
    return torch.ops.itnet.integrate(value, inputs, measure, mask, like_queries, program, normalise, before, after)


def written(program: str, examples: Mapping[str, Any], normalise: bool) -> str:
    """The code that is generated for a program and operands like these (``ir.integral.Like`` by role)."""
    value = examples["value"]
    options = normalise, "measure" in examples, "mask" in examples
    heads, width = value.shape[1], value.shape[3]
    return torch.ops.itnet.integrate_code(program, *options, heads, width, value.dtype, value.device)
