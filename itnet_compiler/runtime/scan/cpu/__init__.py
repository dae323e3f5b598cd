"""The scans on the CPU, compiled by numba. Operands as in ``eager``."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import eager
from . import gradients, matrix, selective
from .compile import arrays, run
from .lanes import LANES
from .linear import line, linear_scan

__all__ = ["linear_scan", "matrix_scan", "matrix_scan_backward", "selective_scan", "selective_scan_backward"]

# Sums over channels are made in at most so many parts, whatever the number of threads, to have one order; a part has at
# least so many channels, or what is summed would take more memory than the states that a backward pass keeps.
_PARTS, _CHANNELS = 16, 128
_DENSE = torch.contiguous_format


def _flat(*tensors: Tensor) -> list[Any]:
    """Each where it lies, as a flat array and its strides: no layout needs a copy."""
    return [value for tensor in tensors for value in (line(tensor), tensor.stride())]


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As ``eager.selective_scan``."""
    state = u.new_zeros((u.shape[0], *A.shape)) if initial is None else initial.contiguous().clone()
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    blocks = u.shape[0] * -(-u.shape[1] // LANES)
    if y.numel():
        operands = (*_flat(u, delta), *arrays(A, *_by_time(B, C), state, y))
        run(selective.forward, blocks, *operands, microseconds=u.numel() * A.shape[1] / _EXPONENTIALS)
    return y, state


def _by_time(B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    return B.transpose(1, 2), C.transpose(1, 2)


def selective_scan_backward(
    grad: Tensor,
    grad_last: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    initial: Tensor,
) -> tuple[Tensor, ...]:
    """As ``eager.selective_scan_backward``."""
    batch, channels, time = u.shape
    parts = max(1, min(_PARTS, -(-channels // _CHANNELS)))
    dstate = grad_last.contiguous().clone()
    du, ddelta = (torch.empty_like(one, memory_format=torch.contiguous_format) for one in (u, delta))
    dA = u.new_zeros((batch, *A.shape))
    dB, dC = (u.new_zeros((batch, parts, time, A.shape[1])) for _ in range(2))
    rest = (A, *_by_time(B, C), initial, dstate, du, ddelta, dA, dB, dC)
    if u.numel():
        pace = u.numel() * A.shape[1] / _EXPONENTIALS
        run(selective.backward, batch * parts, *_flat(grad, u, delta), *arrays(*rest), parts, microseconds=2 * pace)
    return du, ddelta, dA.sum(0), dB.sum(1).transpose(1, 2).contiguous(), dC.sum(1).transpose(1, 2).contiguous(), dstate


def matrix_scan(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    initial: Tensor | None,
    *,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """As ``eager.matrix_scan``; with ``reverse`` from the last step to the first."""
    *batch, time, keys = query.shape
    width = value.shape[-1]
    state = query.new_zeros((*batch, keys, width)) if initial is None else initial.clone(memory_format=_DENSE)
    y = eager.empty_result(value)
    if value.numel():
        rows = math.prod(batch)
        # With the delta rule and no decay, every factor is this one.
        decay = _ONES[query.dtype].expand(*batch, time, 1) if decay is None and beta is not None else decay
        optional = [query if one is None else one for one in (decay, beta)]
        given = [_readable(one) for one in (query, key, value, y, *optional)]
        places = tuple([_places(one.shape[:-2], one.stride()[:-2]) for one in given])
        strides = tuple([one.stride(-2) for one in given])
        addresses = tuple([one.data_ptr() for one in given])
        if reverse:
            ends = [(time - 1) * one.stride(-2) * one.element_size() for one in given]
            addresses = tuple([address + end for address, end in zip(addresses, ends, strict=True)])
            strides = tuple([-stride for stride in strides])
        has = (decay is not None, beta is not None, int(decay is not None and decay.shape[-1] > 1))
        run(
            matrix.forward,
            rows * -(-width // LANES),
            *(addresses, places, strides, (time, keys, width), has, *arrays(state.view(rows, keys, width))),
            microseconds=rows * time * keys * width / _PRODUCTS,
        )
    return y, state


# Entries of a state that take one step in a microsecond, and those with an exponential.
_PRODUCTS, _EXPONENTIALS = 2e4, 1.5e3
_ONES = {dtype: torch.ones(1, 1, dtype=dtype) for dtype in (torch.float32, torch.float64)}


def _readable(tensor: Tensor) -> Tensor:
    """With neighbours in the last axis."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 else tensor.contiguous()


@lru_cache(maxsize=64)
def _places(sizes: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """Where the first number of each index of these axes lies."""
    places = np.zeros(1, np.int64)
    for size, stride in zip(sizes, strides, strict=True):
        places = np.add.outer(places, np.arange(size) * stride).reshape(-1)
    return places


def matrix_scan_backward(
    grad: Tensor,
    grad_last: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor | None,
    decay: Tensor | None,
    initial: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """As ``eager.matrix_scan_backward``."""
    if beta is None and decay is None:
        return _sum_backward(grad, grad_last, query, key, value, initial)
    rows, time, keys = query.shape
    width = value.shape[2]
    one_factor = decay is None or decay.shape[2] == 1
    if one_factor and gradients.is_faster(time, keys, width) and value.numel():
        return gradients.gradients(grad, grad_last, query, key, value, beta, decay, initial)
    blocks = -(-width // LANES)
    start = torch.zeros_like(grad_last) if initial is None else initial
    dstate, dv = grad_last.clone(), torch.zeros_like(value)
    dq, dk = (query.new_zeros((rows, blocks, time, keys)) for _ in range(2))
    # Where nothing decays, every factor is 1.
    factors = _ONES[query.dtype].expand(rows, time, 1) if decay is None else decay
    given = query.new_empty((rows, time, 0)) if beta is None else beta, factors
    dbeta, ddecay = (query.new_zeros((rows, blocks, time, one.shape[2])) for one in given)
    operands = (grad, query, key, value, *given, start, dstate, dq, dk, dv, dbeta, ddecay)
    if value.numel():
        pace = rows * time * keys * width / _PRODUCTS
        run(matrix.backward, rows * blocks, *arrays(*operands), microseconds=4 * pace)
    return (
        dq.sum(1),
        dk.sum(1),
        dv,
        None if beta is None else dbeta.sum(1),
        None if decay is None else ddecay.sum(1),
        None if initial is None else dstate,
    )


def _sum_backward(
    grad: Tensor, grad_last: Tensor, query: Tensor, key: Tensor, value: Tensor, initial: Tensor | None
) -> tuple[Tensor | None, ...]:
    """``matrix_scan_backward`` where nothing decays: three scans, and no state is kept.

    ∂q_t = S_t g_t with S_t = S_{t−1} + k_t v_tᵀ is a scan whose state is Sᵀ; ∂k_t = G_t v_t and ∂v_t = G_tᵀ k_t with
    G_t = G_{t+1} + q_t g_tᵀ are two that run backwards.
    """
    start = None if initial is None else initial.mT
    dq, _ = matrix_scan(grad, value, key, None, None, start)
    dk, _ = matrix_scan(value, grad, query, None, None, grad_last.mT, reverse=True)
    dv, began = matrix_scan(key, query, grad, None, None, grad_last, reverse=True)
    return dq, dk, dv, None, None, None if initial is None else began
