"""Gradients of matrix and delta scans with at most one decay a step: two scans, and products of matrices in chunks.

With states S before a chunk and their gradients E after it, what a step reads and writes within it is masked attention
(the dual form of arXiv:2405.21060, section 6, and for the delta rule arXiv:2406.06484, section 3). Decays enter as
products of factors: nothing overflows, and a factor may be 0 or negative.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ....ir.semiseparable import segment_products
from . import borders
from .compile import arrays, run
from .lanes import LANES

__all__ = ["gradients", "is_faster"]

# Steps of a chunk, and bytes of what is worked on at a time.
_STEPS, _BYTES = 64, 8 << 20
# Entries of a state, and steps, from which on products of matrices pay.
_WIDE, _LONG = 96 * 96, 32
# Entries of a state that take one step in a microsecond.
_PACE = 1.2e4


def is_faster(time: int, keys: int, width: int) -> bool:
    """Whether ``gradients`` is faster than the scan over single steps, as measured.

    With a state of 128 by 128 it takes half to three quarters of the time at 64, 256 and 1,024 steps; with 64 by 64 as
    much as the scan or more.
    """
    return keys * width >= _WIDE and time >= _LONG


def gradients(
    grad: Tensor,
    grad_last: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    initial: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """As ``eager.matrix_scan_backward``, for operands of which none is empty and a decay [P, T, 1]."""
    (rows, time, keys), width = key.shape, value.shape[-1]
    steps = min(_STEPS, time)
    count = -(-time // steps)
    missing = count * steps - time

    def cut(tensor: Tensor, padding: float = 0.0) -> Tensor:
        """[P · chunks, steps, ·]; a padded step keeps the state."""
        whole = F.pad(tensor, (0, 0, 0, missing), value=padding) if missing else tensor
        return whole.reshape(rows * count, steps, tensor.shape[-1])

    g, q, k, v = cut(grad), cut(query), cut(key), cut(value)
    b = v.new_empty((rows * count, steps, 0)) if beta is None else cut(beta)
    a = v.new_ones((rows * count, steps, 1)) if decay is None else cut(decay, 1.0)
    starts, ends = (v.new_empty((rows * count, keys, width)) for _ in range(2))
    errors, slopes, dstate = torch.empty_like(v), torch.empty_like(v), grad_last.clone()
    start = torch.zeros_like(grad_last) if initial is None else initial
    blocks, microseconds = rows * -(-width // LANES), rows * time * keys * width / _PACE
    run(borders.visit, blocks, *arrays(k, v, b, a, start, starts, errors), microseconds=microseconds)
    run(borders.retreat, blocks, *arrays(g, q, k, b, a, dstate, ends, slopes), microseconds=microseconds)

    results = [torch.empty_like(one) for one in (q, k, v, b, a)]
    each = v.element_size() * (2 * keys * width + 6 * steps * (keys + width + steps))
    size = max(1, _BYTES // each)
    for first in range(0, rows * count, size):
        some = slice(first, first + size)
        given = [one[some] for one in (g, q, k, v, b, a, starts, ends, errors, slopes)]
        _in_chunks([one[some] for one in results], *given)

    def joined(tensor: Tensor) -> Tensor:
        return tensor.view(rows, count * steps, tensor.shape[-1])[:, :time].contiguous()

    dq, dk, dv, dbeta, ddecay = map(joined, results)
    return (
        dq,
        dk,
        dv,
        None if beta is None else dbeta,
        None if decay is None else ddecay,
        None if initial is None else dstate,
    )


def _in_chunks(
    results: list[Tensor],
    g: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    b: Tensor,
    a: Tensor,
    before: Tensor,
    after: Tensor,
    errors: Tensor,
    slopes: Tensor,
) -> None:
    """Fill ``results``, the gradients of q, k, v, b and a, of chunks [N, C, ·].

    ``before`` is S, ``after`` E; ``errors`` v − S'ᵀk and ``slopes`` the gradients of what is written along the keys.
    """
    dq, dk, dv, db, da = results
    delta, steps = b.shape[-1] > 0, k.shape[1]
    products = segment_products(a[..., 0])  # [t, s]
    since, until = torch.cumprod(a, 1), products[:, -1, :, None]
    written, readers, above, kept, passed = v, q, g, products, since
    if delta:
        torch.mul(b, slopes, out=dv)
        torch.sum(slopes * errors, -1, keepdim=True, out=db)
        # A key reads the decayed state before its own step, and what it finds is taken off what is written.
        written, readers, above = b * errors, torch.cat([q, k], 1), torch.cat([g, -dv], 1)
        kept, passed = torch.cat([products, products.tril(-1)], 1), torch.cat([since, since], 1)
    else:
        dv.copy_(slopes)
    weights = above @ written.mT
    paths = weights * (readers @ k.mT)
    weights *= kept
    from_state, to_state = above @ before.mT, written @ after.mT
    dreaders = torch.baddbmm(passed * from_state, weights, k)
    torch.baddbmm(until * to_state, weights.mT, readers, out=dk)
    dq.copy_(dreaders[:, :steps])
    if delta:
        dk += dreaders[:, steps:]

    # A factor is on every path from an earlier step, or the state before, to its own or a later one, or the state
    # after.
    from_start = (readers * from_state).sum(-1)
    if delta:
        paths = paths[:, :steps] + paths[:, steps:]
        from_start = from_start[:, :steps] + from_start[:, steps:]
    earlier = F.pad(products, (0, 0, 1, 0))[:, :-1]
    began = F.pad(since[..., 0], (1, 0), value=1.0)[:, :-1]
    to_here = torch.baddbmm(from_start[..., None] * began[:, None], paths.tril_(-1), earlier.mT)
    to_end = (earlier @ (k * to_state).sum(-1, keepdim=True))[..., 0] + began * (before * after).sum((1, 2))[:, None]
    torch.add((products * to_here).sum(1), until[..., 0] * to_end, out=da[..., 0])
