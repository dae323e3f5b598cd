"""Linear scan on the CPU: it moves memory, and little else.

Operands are read where they lie, as rows of neighbouring numbers at a distance for each step and for each outer index,
so that batch-first sequences are not copied. A block of the state stays in the cache.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .compile import jit, run
from .lanes import LANES, fill_from, get, load_from, pointer, put, store_to

__all__ = ["line", "linear_scan"]

COLUMNS = 512
# Numbers that a thread takes in a microsecond: as fast as memory gives them.
_PACE = 6e3


def linear_scan(decay: Tensor, input: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """As ``eager.linear_scan``."""
    shape = input.shape
    state = torch.empty(shape[1:], dtype=input.dtype)
    state.fill_(0) if initial is None else state.copy_(initial)
    states = torch.empty_like(input)
    if not states.numel():
        return states, state
    target, source, factors = states, input, decay.expand(shape)
    if input.is_complex():
        source, factors = source.resolve_conj(), factors.resolve_conj()
    rows = _rows(shape[1:], factors.stride()[1:], source.stride()[1:], target.stride()[1:])
    if rows is None:
        target, source = (one.contiguous() for one in (target, source))
        factors = factors if _is_one(factors) else factors.contiguous()
        rows = _rows(shape[1:], factors.stride()[1:], source.stride()[1:], target.stride()[1:])
        assert rows is not None
    (outer, inner), strides, spread = rows
    steps = [one.stride(0) for one in (factors, source, target)]
    layout = (shape[0], outer, inner, *(number for pair in zip(steps, strides, strict=True) for number in pair))
    if input.is_complex():
        kernel, places = scan_complex, [line(one) for one in (factors, source, state, target)]
    else:
        addresses = tuple([one.data_ptr() for one in (factors, source, state, target)])
        kernel, places = scan, [addresses, _KINDS[input.dtype]]
    count, time = outer * -(-inner // COLUMNS), states.numel() / _PACE
    run(kernel, count, *places, layout, spread, reverse, microseconds=time)
    return states if target is states else states.copy_(target), state


def _is_one(decay: Tensor) -> bool:
    """Whether all entries of a step have one factor."""
    return not any(decay.stride()[1:])


def line(tensor: Tensor) -> Any:
    """The numbers from the first one of a tensor to its last one, as a flat array."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.detach().as_strided((last + 1,), (1,)).numpy()


# What tells a kernel the dtype of what lies at its addresses.
_KINDS = {torch.float32: np.empty(0, np.float32), torch.float64: np.empty(0, np.float64)}


@lru_cache(maxsize=256)
def _rows(sizes: tuple[int, ...], *strides: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, ...], int] | None:
    """The axes of a step as (outer, inner), neighbours inside; every tensor's distance of outer ones; that of the decay
    inside, 1, or 0 where it is one number for all of them. None where they are not such.

    The first of ``strides`` is that of the decay.
    """
    merged: list[tuple[int, tuple[int, ...]]] = []
    for size, steps in zip(sizes, zip(*strides, strict=True), strict=True):
        if size == 1:
            continue
        if merged and all(before == size * step for before, step in zip(merged[-1][1], steps, strict=True)):
            merged[-1] = merged[-1][0] * size, steps
        else:
            merged.append((size, steps))
    inner, near = merged.pop() if merged else (1, (1, 1, 1))
    outer, far = merged.pop() if merged else (1, (0,) * len(strides))
    if merged or near[0] not in (0, 1) or near[1:] != (1,) * (len(near) - 1) or (outer > 1 and inner < LANES):
        return None
    return (outer, inner), far, near[0]


@jit
def scan(addresses, like, layout, spread, reverse, start, stop):
    """Blocks ``start`` to ``stop`` of (outer, block of columns); the state [outer, inner] goes from first to last.

    ``addresses``: of decay, source, state and target, of the dtype of ``like``. ``layout``: sizes of (time, outer,
    inner), then of decay, source and target the distances of steps and of outer rows. ``spread``: whether the decay has
    a factor for each column.
    """
    decay, source = pointer(addresses[0], like), pointer(addresses[1], like)
    state, target = pointer(addresses[2], like), pointer(addresses[3], like)
    time, _, inner, decay_step, decay_row, source_step, source_row, target_step, target_row = layout
    blocks = (inner + COLUMNS - 1) // COLUMNS
    for task in range(start, stop):
        row, first = task // blocks, task % blocks * COLUMNS
        width = min(COLUMNS, inner - first)
        whole = width // LANES * LANES
        h = row * inner + first
        for step in range(time):
            t = time - 1 - step if reverse else step
            a = t * decay_step + row * decay_row + spread * first
            x = t * source_step + row * source_row + first
            y = t * target_step + row * target_row + first
            if spread:
                for i in range(0, whole, LANES):
                    value = load_from(decay, a + i) * load_from(state, h + i) + load_from(source, x + i)
                    store_to(state, h + i, value)
                    store_to(target, y + i, value)
            else:
                factor = fill_from(decay, a)
                for i in range(0, whole, LANES):
                    value = factor * load_from(state, h + i) + load_from(source, x + i)
                    store_to(state, h + i, value)
                    store_to(target, y + i, value)
            for i in range(whole, width):
                number = get(decay, a + spread * i) * get(state, h + i) + get(source, x + i)
                put(state, h + i, number)
                put(target, y + i, number)


@jit
def scan_complex(decay, source, state, target, layout, spread, reverse, start, stop):
    """As ``scan``, a number at a time, of flat arrays."""
    time, _, inner, decay_step, decay_row, source_step, source_row, target_step, target_row = layout
    blocks = (inner + COLUMNS - 1) // COLUMNS
    for task in range(start, stop):
        row, first = task // blocks, task % blocks * COLUMNS
        for step in range(time):
            t = time - 1 - step if reverse else step
            a, x, y = (
                t * decay_step + row * decay_row,
                t * source_step + row * source_row,
                t * target_step + row * target_row,
            )
            for i in range(first, min(first + COLUMNS, inner)):
                number = decay[a + spread * i] * state[row * inner + i] + source[x + i]
                state[row * inner + i] = number
                target[y + i] = number
