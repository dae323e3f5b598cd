"""Selective scan on the CPU: a block of channels at a time, one vector lane each, all states of it in the cache.

The exponentials are what it costs: one for every channel, state and step, twice as many again in a backward pass.
"""

from __future__ import annotations

import numpy as np

from .compile import jit, part
from .lanes import LANES, exp, fill, load, store, total

__all__ = ["backward", "forward"]

CHUNK = 64


@part
def _load_steps(tile, source, strides, batch, first, width, start, steps):
    """tile[t, lane] = source[batch, first + lane, start + t]; 0 from lane ``width`` on.

    ``source`` is flat; ``strides`` are those of (batch, channel, time).
    """
    along = strides[2]
    for lane in range(width):
        place = batch * strides[0] + (first + lane) * strides[1] + start * along
        for t in range(steps):
            tile[t, lane] = source[place + t * along]
    if width < LANES:
        tile[:, width:] = 0


@part
def _store_steps(tile, target, first, start, steps):
    part = target[first : first + LANES, start : start + steps]
    for lane in range(part.shape[0]):
        row = part[lane]
        for t in range(steps):
            row[t] = tile[t, lane]


@part
def _load_states(tile, source, first):
    """tile[state, lane] = source[first + lane, state]; 0 where there is no channel."""
    part = source[first : first + LANES]
    tile[:] = 0
    for lane in range(part.shape[0]):
        for n in range(tile.shape[0]):
            tile[n, lane] = part[lane, n]


@part
def _store_states(tile, target, first):
    part = target[first : first + LANES]
    for lane in range(part.shape[0]):
        for n in range(tile.shape[0]):
            part[lane, n] = tile[n, lane]


@jit
def forward(u, u_strides, delta, delta_strides, A, B, C, state, y, start, stop):
    """Blocks ``start`` to ``stop`` of (batch, block of channels); ``state`` [Bt, D, N] goes from first to last.

    u, delta [Bt, D, T], flat with their strides; y [Bt, D, T]; B, C [Bt, T, N].
    """
    channels, time, states = y.shape[1], y.shape[2], A.shape[1]
    blocks = (channels + LANES - 1) // LANES
    a, h = np.empty((states, LANES), u.dtype), np.empty((states, LANES), u.dtype)
    tile_u, tile_delta = np.empty((CHUNK, LANES), u.dtype), np.empty((CHUNK, LANES), u.dtype)
    for task in range(start, stop):
        batch, first = task // blocks, task % blocks * LANES
        width = min(LANES, channels - first)
        _load_states(a, A, first)
        _load_states(h, state[batch], first)
        for begin in range(0, time, CHUNK):
            steps = min(CHUNK, time - begin)
            _load_steps(tile_u, u, u_strides, batch, first, width, begin, steps)
            _load_steps(tile_delta, delta, delta_strides, batch, first, width, begin, steps)
            _advance(h, a, tile_u, tile_delta, B[batch, begin : begin + steps], C[batch, begin : begin + steps])
            _store_steps(tile_u, y[batch], first, begin, steps)
        _store_states(h, state[batch], first)


@part
def _advance(h, a, tile_u, tile_delta, B, C):
    """Take the steps of B and C [·, N]; the outputs take the place of the inputs in ``tile_u``."""
    for t in range(B.shape[0]):
        delta = load(tile_delta, t)
        written = delta * load(tile_u, t)
        y = fill(h.dtype.type(0))
        for n in range(h.shape[0]):
            value = exp(delta * load(a, n)) * load(h, n) + written * fill(B[t, n])
            store(h, n, value)
            y = y + value * fill(C[t, n])
        store(tile_u, t, y)


@part
def _replay(visited, factors, a, tile_u, tile_delta, B):
    """All states of a chunk from the first, states of a step after those of the one before, and all factors."""
    states = a.shape[0]
    for t in range(B.shape[0]):
        delta = load(tile_delta, t)
        written = delta * load(tile_u, t)
        for n in range(states):
            place = t * states + n
            factor = exp(delta * load(a, n))
            store(factors, place, factor)
            store(visited, place + states, factor * load(visited, place) + written * fill(B[t, n]))


@part
def _retreat(g, visited, factors, a, da, tile_u, tile_delta, tile_grad, B, C, dB, dC):
    """Gradients of a chunk, last step first; ``g`` is that of the state. ∂u and ∂Δ take the places of u and Δ."""
    states = a.shape[0]
    for t in range(B.shape[0] - 1, -1, -1):
        u, delta, grad = load(tile_u, t), load(tile_delta, t), load(tile_grad, t)
        written = delta * u
        from_input = from_exponent = fill(a.dtype.type(0))
        for n in range(states):
            place = t * states + n
            here = load(g, n) + grad * fill(C[t, n])
            carried = here * load(factors, place)
            exponent = carried * load(visited, place)
            from_exponent = from_exponent + exponent * load(a, n)
            from_input = from_input + here * fill(B[t, n])
            store(da, n, load(da, n) + exponent * delta)
            store(g, n, carried)
            dC[t, n] += total(grad * load(visited, place + states))
            dB[t, n] += total(written * here)
        store(tile_u, t, from_input * delta)
        store(tile_delta, t, from_exponent + from_input * u)


@jit
def backward(
    grad, grad_strides, u, u_strides, delta, delta_strides, A, B, C, initial, dstate, du, ddelta, dA, dB, dC, parts,
    start, stop,
):  # fmt: skip
    """Parts ``start`` to ``stop`` of (batch, part of the blocks of channels); operands as those of ``forward``.

    ``dstate`` [Bt, D, N] goes from the gradient of the last state to that of the first; dA is [Bt, D, N], dB and dC
    [Bt, parts, T, N]: what is summed over batches or channels has a place of its own for each part.
    """
    channels, time, states = du.shape[1], du.shape[2], A.shape[1]
    blocks, chunks, dtype = (channels + LANES - 1) // LANES, (time + CHUNK - 1) // CHUNK, u.dtype
    a, da, g = np.empty((states, LANES), dtype), np.empty((states, LANES), dtype), np.empty((states, LANES), dtype)
    tile_u, tile_delta = np.empty((CHUNK, LANES), dtype), np.empty((CHUNK, LANES), dtype)
    tile_grad = np.empty((CHUNK, LANES), dtype)
    starts = np.empty((chunks + 1, states, LANES), dtype)
    visited = np.empty(((CHUNK + 1) * states, LANES), dtype)
    factors = np.empty((CHUNK * states, LANES), dtype)
    for task in range(start, stop):
        batch, part = task // parts, task % parts
        for block in range(blocks * part // parts, blocks * (part + 1) // parts):
            first = block * LANES
            width = min(LANES, channels - first)
            _load_states(a, A, first)
            _load_states(starts[0], initial[batch], first)
            da[:] = 0
            for chunk in range(chunks):
                begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, time)
                starts[chunk + 1] = starts[chunk]
                _load_steps(tile_u, u, u_strides, batch, first, width, begin, end - begin)
                _load_steps(tile_delta, delta, delta_strides, batch, first, width, begin, end - begin)
                _skip(starts[chunk + 1], a, tile_u, tile_delta, B[batch, begin:end])
            _load_states(g, dstate[batch], first)
            for chunk in range(chunks - 1, -1, -1):
                begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, time)
                _load_steps(tile_u, u, u_strides, batch, first, width, begin, end - begin)
                _load_steps(tile_delta, delta, delta_strides, batch, first, width, begin, end - begin)
                _load_steps(tile_grad, grad, grad_strides, batch, first, width, begin, end - begin)
                visited[:states] = starts[chunk]
                b, c = B[batch, begin:end], C[batch, begin:end]
                _replay(visited, factors, a, tile_u, tile_delta, b)
                db, dc = dB[batch, part, begin:end], dC[batch, part, begin:end]
                _retreat(g, visited, factors, a, da, tile_u, tile_delta, tile_grad, b, c, db, dc)
                _store_steps(tile_u, du[batch], first, begin, end - begin)
                _store_steps(tile_delta, ddelta[batch], first, begin, end - begin)
            _store_states(g, dstate[batch], first)
            _store_states(da, dA[batch], first)


@part
def _skip(h, a, tile_u, tile_delta, B):
    """The state after a chunk."""
    for t in range(B.shape[0]):
        delta = load(tile_delta, t)
        written = delta * load(tile_u, t)
        for n in range(h.shape[0]):
            store(h, n, exp(delta * load(a, n)) * load(h, n) + written * fill(B[t, n]))
