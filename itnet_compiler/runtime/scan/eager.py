"""The scans in plain torch, one step at a time: right on every device and for every dtype, and slow.

All functions take and return what the compiled ones do: operands of one dtype, flattened by ``operators``.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "empty_result",
    "linear_scan",
    "matrix_scan",
    "matrix_scan_backward",
    "selective_scan",
    "selective_scan_backward",
]

# Steps between two states that a backward pass keeps; those in between are computed again.
CHUNK = 64


def linear_scan(decay: Tensor, input: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """h_t = a_t h_{t−1} + x_t for ``input`` [T, …], a decay of as many axes and an initial state that broadcast to it.

    All states, laid out in memory as ``input`` where that is dense, and the last one, contiguous.
    """
    time = input.shape[0]
    state = input.new_zeros(input.shape[1:])
    state = state if initial is None else state + initial
    states = torch.empty_like(input)
    for t in reversed(range(time)) if reverse else range(time):
        state = decay[t if decay.shape[0] > 1 else 0] * state + input[t]
        states[t] = state
    return states, state.contiguous()


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Shapes as of the operator; y [Bt, D, T], last [Bt, D, N]."""
    state = u.new_zeros((u.shape[0], *A.shape)) if initial is None else initial.clone()
    y = torch.empty_like(u, memory_format=torch.contiguous_format)
    for t in range(u.shape[-1]):
        state = _selective_step(state, t, u, delta, A, B)
        y[..., t] = torch.einsum("bdn,bn->bd", state, C[..., t])
    return y, state


def _selective_step(state: Tensor, t: int, u: Tensor, delta: Tensor, A: Tensor, B: Tensor) -> Tensor:
    step = delta[..., t, None]
    return torch.exp(step * A) * state + step * u[..., t, None] * B[:, None, :, t]


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
    """Gradients of u, delta, A, B, C and the initial state; states are computed again from one a chunk."""
    du, ddelta, dA, dB, dC = (
        torch.zeros_like(one, memory_format=torch.contiguous_format) for one in (u, delta, A, B, C)
    )
    time, carried = u.shape[-1], grad_last.clone()
    starts = []
    state = initial
    for t in range(time):
        if t % CHUNK == 0:
            starts.append(state)
        state = _selective_step(state, t, u, delta, A, B)
    for chunk in reversed(range(len(starts))):
        first = chunk * CHUNK
        states = [starts[chunk]]
        for t in range(first, min(first + CHUNK, time)):
            states.append(_selective_step(states[-1], t, u, delta, A, B))
        for t in reversed(range(first, first + len(states) - 1)):
            before, state = states[t - first], states[t - first + 1]
            step = delta[..., t, None]
            carried = carried + grad[..., t, None] * C[:, None, :, t]
            dC[..., t] = torch.einsum("bdn,bd->bn", state, grad[..., t])
            factor = torch.exp(step * A)
            exponent = carried * before * factor
            from_input = torch.einsum("bdn,bn->bd", carried, B[..., t])
            ddelta[..., t] = (exponent * A).sum(-1) + from_input * u[..., t]
            dA += (exponent * step).sum(0)
            du[..., t] = from_input * delta[..., t]
            dB[..., t] = (carried * (step * u[..., t, None])).sum(1)
            carried = carried * factor
    return du, ddelta, dA, dB, dC, carried


def matrix_scan(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor | None, decay: Tensor | None, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Operands […, T, ·] with the same leading axes, in any layout; y […, T, V], laid out as by ``empty_result``; last
    […, K, V], contiguous. With ``beta`` it is the delta rule.
    """
    *batch, time, keys = query.shape
    state = query.new_zeros((*batch, keys, value.shape[-1])) if initial is None else initial
    y = empty_result(value)
    for t in range(time):
        state = _matrix_step(state, t, key, value, beta, decay)[2]
        y[..., t, :] = torch.einsum("...kv,...k->...v", state, query[..., t, :])
    return y, state.clone(memory_format=torch.contiguous_format)


def empty_result(value: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Memory for y […, T, V], in the order of ``value`` where neighbours in the last axis are neighbours there."""
    y = torch.empty_like(value, dtype=dtype)
    if y.shape[-1] <= 1 or y.stride(-1) == 1:
        return y
    return torch.empty_like(value, dtype=dtype, memory_format=torch.contiguous_format)


def _matrix_step(
    state: Tensor, t: int, key: Tensor, value: Tensor, beta: Tensor | None, decay: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """The decayed state, what is written along the key, and the state after the step."""
    decayed = state if decay is None else decay[..., t, :, None] * state
    written = value[..., t, :]
    if beta is not None:
        written = beta[..., t, :] * (written - torch.einsum("...kv,...k->...v", decayed, key[..., t, :]))
    return decayed, written, decayed + key[..., t, :, None] * written[..., None, :]


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
    """Gradients of query, key, value, beta, decay and the initial state; None where there is no operand."""
    dq, dk, dv = (torch.empty_like(one) for one in (query, key, value))
    dbeta = None if beta is None else torch.empty_like(beta)
    ddecay = None if decay is None else torch.empty_like(decay)
    state = torch.zeros_like(grad_last) if initial is None else initial
    time, carried, starts = query.shape[1], grad_last.clone(), []
    for t in range(time):
        if t % CHUNK == 0:
            starts.append(state)
        state = _matrix_step(state, t, key, value, beta, decay)[2]
    for chunk in reversed(range(len(starts))):
        first, steps, state = chunk * CHUNK, [], starts[chunk]
        for t in range(first, min(first + CHUNK, time)):
            before = state
            decayed, written, state = _matrix_step(before, t, key, value, beta, decay)
            steps.append((before, decayed, written, state))
        for t in reversed(range(first, first + len(steps))):
            before, decayed, written, state = steps[t - first]
            carried = carried + query[:, t, :, None] * grad[:, t, None, :]
            dq[:, t] = torch.einsum("pkv,pv->pk", state, grad[:, t])
            slope = torch.einsum("pkv,pk->pv", carried, key[:, t])
            dk[:, t] = torch.einsum("pkv,pv->pk", carried, written)
            if beta is not None and dbeta is not None:
                error = value[:, t] - torch.einsum("pkv,pk->pv", decayed, key[:, t])
                dbeta[:, t] = (slope * error).sum(-1, keepdim=True)
                slope = beta[:, t] * slope
                dk[:, t] -= torch.einsum("pkv,pv->pk", decayed, slope)
                carried = carried - key[:, t, :, None] * slope[:, None, :]
            dv[:, t] = slope
            if decay is not None and ddecay is not None:
                each = (carried * before).sum(-1)
                ddecay[:, t] = each if decay.shape[-1] == each.shape[-1] else each.sum(-1, keepdim=True)
                carried = decay[:, t, :, None] * carried
    return dq, dk, dv, dbeta, ddecay, None if initial is None else carried
