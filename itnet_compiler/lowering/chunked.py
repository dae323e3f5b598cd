"""Lowering ``chunked``: matrix-state recurrences as matrix products within chunks and a short scan between them.

The dual form of Mamba-2 (arXiv:2405.21060, section 6) and of gated linear attention (arXiv:2312.06635, section 4), with
products of decays where those works take differences of logarithms: nothing overflows, and a decay of 0 stays 0.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..ir.arranged_state import ArrangedState
from ..ir.kernel import Spec
from ..ir.matrix_state import MatrixState
from ..ir.memory import Memory
from ..ir.semiseparable import segment_products
from .arranged import arranged
from .base import Lowered, Lowering, Support

__all__ = ["Chunked", "chunks"]

# Steps a chunk. With a decay for each key feature there is a product for each pair of steps and feature.
_STEPS = {"none": 64, "scalar": 64, "diagonal": 16}


class Chunked(Lowering):
    """Most of the work as matrix products, in parallel over chunks: for many heads and wide states."""

    name = "chunked"

    def supports(self, spec: Spec) -> Support:
        if not isinstance(spec.kernel, MatrixState | Memory):
            return Support((f"the {type(spec.kernel).__name__} kernel has no state to multiply as a matrix",))
        state = spec.kernel.state() if isinstance(spec.kernel, Memory) else spec.kernel
        if state.delta:
            return Support(("the delta rule in chunks solves a triangle in each, and is slower than the scan",))
        return Support()

    def build(self, spec: Spec) -> Lowered:
        if isinstance(spec.kernel, ArrangedState):
            return arranged(spec, "chunks", partial(chunks, spec.kernel.state()))
        arguments = ", ".join(f"{role}={role}" for role in spec.operands)
        if isinstance(spec.kernel, Memory):
            function: Callable[..., Any] = partial(_memory, spec.kernel)
        else:
            assert isinstance(spec.kernel, MatrixState)
            function = partial(chunks, spec.kernel)
        return Lowered(
            spec.operands,
            f"chunks({arguments})",
            {"chunks": function},
            text=textwrap.dedent(inspect.getsource(chunks)),
        )


def _memory(kernel: Memory, **operands: Tensor) -> tuple[Tensor, ...]:
    return kernel.run(chunks, **operands)


def chunks(
    kernel: MatrixState,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor | None = None,
    initial: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """A recurrence without delta rule, in chunks: operands and results as of ``kernel.evaluate``."""
    given = [one for one in (query, key, value, decay, initial) if one is not None]
    dtype = given[0].dtype
    for one in given[1:]:
        dtype = torch.promote_types(dtype, one.dtype)
    wide = torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype
    time, steps = query.shape[-2], _STEPS[kernel.decay]
    factors = torch.ones_like(query[..., :1]) if decay is None else decay
    count = -(-time // steps)
    missing = count * steps - time

    def cut(tensor: Tensor, padding: float = 0.0) -> Tensor:
        """[…, T, ·] → […, chunks, steps, ·]; a padded step keeps the state."""
        padded = F.pad(tensor.to(wide), (0, 0, 0, missing), value=padding)
        return padded.reshape(*padded.shape[:-2], count, steps, padded.shape[-1])

    q, k, v, a = cut(query), cut(key), cut(value), cut(factors, 1.0)
    products = segment_products(a.transpose(-1, -2))  # [..., 1 or K, t, s]
    since = torch.cumprod(a, -2)  # from the start of the chunk, its own step included
    until = products[..., -1, :].transpose(-1, -2)  # to the end of the chunk, its own step not
    if a.shape[-1] == 1:
        weights = (q @ k.transpose(-1, -2)) * products[..., 0, :, :]
    else:
        weights = torch.einsum("...tk,...kts,...sk->...ts", q, products, k)
    added = (k * until).transpose(-1, -2) @ v  # what a chunk adds to the state, [..., chunks, K, V]
    kept = since[..., -1, :, None]  # [..., chunks, 1 or K, 1]
    batch = torch.broadcast_shapes(added.shape[:-3], kept.shape[:-3], () if initial is None else initial.shape[:-2])
    added = added.expand(*batch, *added.shape[-3:]).movedim(-3, 0)
    kept = kept.expand(*batch, *kept.shape[-3:]).movedim(-3, 0)
    start = added.new_zeros(added.shape[1:]) if initial is None else initial.to(wide).expand(added.shape[1:])
    after, last = torch.ops.itnet.linear_scan(kept, added, start)
    before = torch.cat([start[None], after[:-1]]) if count else after
    y = weights @ v + (q * since) @ before.movedim(0, -3)
    return y.reshape(*y.shape[:-3], count * steps, y.shape[-1])[..., :time, :].to(dtype), last.to(dtype)
