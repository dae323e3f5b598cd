"""The scans on NVIDIA GPUs, compiled by Triton. Operands as in ``eager``; what Triton cannot hold goes there."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from ...device import device_of
from .. import eager
from . import kernels

__all__ = ["linear_scan", "matrix_scan", "matrix_scan_backward", "selective_scan", "selective_scan_backward"]

COLUMNS = 128
# Entries of a state that a program holds in registers, by kernel: as many as leave them all there.
ENTRIES = {"selective": 1024, "selective_backward": 512, "matrix": 1024, "matrix_backward": 256}
CHUNK = 64
# A multiply and an add may be one instruction, as on the CPU; not left to a default that changes between versions.
_FUSED = {"enable_fp_fusion": True}


def block_sizes(kernel: str, states: int, width: int) -> tuple[int, int]:
    """Channels (or columns) a program, and states rounded up to a power of two."""
    padded = triton.next_power_of_2(max(1, states))
    return max(1, min(triton.next_power_of_2(width), ENTRIES[kernel] // padded)), padded


def linear_scan(decay: Tensor, input: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """As ``eager.linear_scan``; complex numbers are left to it."""
    if input.is_complex():
        return eager.linear_scan(decay, input, initial, reverse)
    time, width = input.shape[0], input.shape[1:].numel()
    state = input.new_empty(input.shape[1:])
    state.fill_(0) if initial is None else state.copy_(initial)
    states = torch.empty_like(input, memory_format=torch.contiguous_format)
    if states.numel():
        decay = decay if decay.shape[1:].numel() == 1 else decay.expand(decay.shape[0], *input.shape[1:])
        decay = decay.reshape(decay.shape[0], -1).contiguous()
        strides = (decay.shape[1] * (decay.shape[0] > 1), int(decay.shape[1] > 1))
        grid, given = (triton.cdiv(width, COLUMNS),), input.contiguous()
        with device_of(input):
            kernels.linear[grid](decay, given, state, states, time, width, *strides, reverse, COLUMNS, **_FUSED)
    laid_out = torch.empty_like(input)
    return states if laid_out.stride() == states.stride() else laid_out.copy_(states), state


def _by_time(*tensors: Tensor) -> list[Tensor]:
    return [tensor.transpose(1, 2).contiguous() for tensor in tensors]


def selective_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As ``eager.selective_scan``."""
    batch, channels, time = u.shape
    states = A.shape[1]
    state = u.new_zeros((batch, channels, states)) if initial is None else initial.contiguous().clone()
    inputs = _by_time(u, delta, B, C)
    y = torch.zeros_like(inputs[0])
    block, padded = block_sizes("selective", states, channels)
    if y.numel():
        with device_of(u):
            kernels.selective[(triton.cdiv(channels, block), batch)](
                inputs[0],
                inputs[1],
                A.contiguous(),
                *inputs[2:],
                state,
                y,
                channels,
                time,
                states,
                block,
                padded,
                **_FUSED,
            )
    return y.transpose(1, 2).contiguous(), state


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
    states = A.shape[1]
    block, padded = block_sizes("selective_backward", states, channels)
    blocks = triton.cdiv(channels, block)
    inputs = _by_time(grad, u, delta, B, C)
    dstate, dA = grad_last.contiguous().clone(), u.new_zeros((batch, channels, states))
    du, ddelta = torch.zeros_like(inputs[1]), torch.zeros_like(inputs[1])
    dB, dC = (u.new_zeros((batch, blocks, time, states)) for _ in range(2))
    room = [u.new_empty((batch, count, channels, states)) for count in (triton.cdiv(time, CHUNK), CHUNK)]
    if u.numel():
        with device_of(u):
            kernels.selective_backward[(blocks, batch)](
                *inputs[:3], A.contiguous(), *inputs[3:], initial.contiguous(), dstate, *room, du, ddelta, dA, dB, dC,
                channels, time, states, CHUNK, block, padded, **_FUSED,
            )  # fmt: skip
    return (*_by_time(du, ddelta), dA.sum(0), *_by_time(dB.sum(1), dC.sum(1)), dstate)


def matrix_scan(
    query: Tensor, key: Tensor, value: Tensor, beta: Tensor | None, decay: Tensor | None, initial: Tensor | None
) -> tuple[Tensor, Tensor]:
    """As ``eager.matrix_scan``."""
    batch, result = query.shape[:-2], eager.empty_result(value)
    query, key, value = (_flat(one) for one in (query, key, value))
    beta, decay, initial = (None if one is None else _flat(one) for one in (beta, decay, initial))
    rows, time, keys = query.shape
    values = value.shape[2]
    state = query.new_zeros((rows, keys, values)) if initial is None else initial.clone()
    y = torch.zeros_like(value)
    block, padded = block_sizes("matrix", keys, values)
    if y.numel():
        given = (query if beta is None else beta, query if decay is None else decay)
        decays = 0 if decay is None else decay.shape[2]
        with device_of(query):
            kernels.matrix[(triton.cdiv(values, block), rows)](
                query,
                key,
                value,
                *given,
                state,
                y,
                time,
                keys,
                values,
                decays,
                beta is not None,
                block,
                padded,
                **_FUSED,
            )
    return result.copy_(y.view_as(result)), state.view(*batch, keys, values)


def _flat(tensor: Tensor) -> Tensor:
    """Contiguous, with one leading axis."""
    return tensor.reshape(tensor.shape[:-2].numel(), *tensor.shape[-2:]).contiguous()


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
    rows, time, keys = query.shape
    values = value.shape[2]
    block, padded = block_sizes("matrix_backward", keys, values)
    blocks = triton.cdiv(values, block)
    start = torch.zeros_like(grad_last) if initial is None else initial
    dstate, dv = grad_last.clone(), torch.zeros_like(value)
    dq, dk, each = (query.new_zeros((rows, blocks, time, keys)) for _ in range(3))
    dbeta = query.new_zeros((rows, blocks, time, 1))
    room = [query.new_empty((rows, count, keys, values)) for count in (triton.cdiv(time, CHUNK), CHUNK)]
    decays = 0 if decay is None else decay.shape[2]
    if value.numel():
        given = (query if beta is None else beta, query if decay is None else decay)
        with device_of(query):
            kernels.matrix_backward[(blocks, rows)](
                grad, query, key, value, *given, start, dstate, *room, dq, dk, dv, dbeta, each,
                time, keys, values, decays, CHUNK, beta is not None, block, padded, **_FUSED,
            )  # fmt: skip
    ddecay = each.sum(1)
    if decays != keys:
        ddecay = ddecay.sum(-1, keepdim=True)
    return (
        dq.sum(1),
        dk.sum(1),
        dv,
        None if beta is None else dbeta.sum(1),
        None if decay is None else ddecay,
        None if initial is None else dstate,
    )
