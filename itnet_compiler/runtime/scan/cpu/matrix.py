"""Matrix and delta scans on the CPU. Columns of the state do not meet: a block of them at a time, one lane each."""

from __future__ import annotations

import numpy as np

from .compile import jit, part
from .lanes import LANES, fill, load, load_from, store, store_to, total

__all__ = ["backward", "forward"]

CHUNK = 64


@part
def _load_columns(tile, source, first):
    """tile[row, lane] = source[row, first + lane]; 0 where there is no column."""
    part = source[:, first : first + LANES]
    if part.shape[1] < LANES:
        tile[:] = 0
    for row in range(part.shape[0]):
        for lane in range(part.shape[1]):
            tile[row, lane] = part[row, lane]


@part
def _store_columns(tile, target, first):
    part = target[:, first : first + LANES]
    for row in range(part.shape[0]):
        for lane in range(part.shape[1]):
            part[row, lane] = tile[row, lane]


@part
def _factor(decay, k):
    """a_k, where ``decay`` has none (1), one, or one for each key."""
    if decay.shape[0] == 0:
        return decay.dtype.type(1)
    return decay[k] if decay.shape[0] > 1 else decay[0]


@part
def _written(before, key, decay, beta, value):
    """What the key is multiplied with; ``beta`` has one entry, or none where there is no delta rule."""
    written = value
    if beta.shape[0]:
        for k in range(key.shape[0]):
            written = written - fill(key[k] * _factor(decay, k)) * load(before, k)
        written = written * fill(beta[0])
    return written


@part
def _step(before, after, key, decay, beta, value):
    """One step of a block from ``before`` to ``after`` [K, lanes], which may be one; as ``_written``."""
    written = _written(before, key, decay, beta, value)
    for k in range(key.shape[0]):
        store(after, k, fill(_factor(decay, k)) * load(before, k) + fill(key[k]) * written)
    return written


@part
def _step_read(h, written, key, at_k, decay, query, at_q):
    """One step of a block in place, and Σ_k q_k h_k after it: even and odd k apart, since sums wait for one another.

    Keys and queries are flat arrays with the place of the first: a slice of an array costs as much as four products.
    """
    even = odd = fill(h.dtype.type(0))
    keys = h.shape[0]
    for pair in range(keys // 2):
        k = 2 * pair
        one = fill(_factor(decay, k)) * load(h, k) + fill(key[at_k + k]) * written
        two = fill(_factor(decay, k + 1)) * load(h, k + 1) + fill(key[at_k + k + 1]) * written
        store(h, k, one)
        store(h, k + 1, two)
        even = even + fill(query[at_q + k]) * one
        odd = odd + fill(query[at_q + k + 1]) * two
    if keys % 2:
        one = fill(_factor(decay, keys - 1)) * load(h, keys - 1) + fill(key[at_k + keys - 1]) * written
        store(h, keys - 1, one)
        even = even + fill(query[at_q + keys - 1]) * one
    return even + odd


@part
def _added_read(h, written, key, at_k, query, at_q):
    """``_step_read`` where nothing decays."""
    even = odd = fill(h.dtype.type(0))
    keys = h.shape[0]
    for pair in range(keys // 2):
        k = 2 * pair
        one = load(h, k) + fill(key[at_k + k]) * written
        two = load(h, k + 1) + fill(key[at_k + k + 1]) * written
        store(h, k, one)
        store(h, k + 1, two)
        even = even + fill(query[at_q + k]) * one
        odd = odd + fill(query[at_q + k + 1]) * two
    if keys % 2:
        one = load(h, keys - 1) + fill(key[at_k + keys - 1]) * written
        store(h, keys - 1, one)
        even = even + fill(query[at_q + keys - 1]) * one
    return even + odd


@jit
def forward(query, key, value, beta, decay, state, y, sizes, start, stop):
    """Blocks ``start`` to ``stop`` of (row, block of columns); ``state`` [P, K, V] goes from first to last.

    Query, key, value and y are read and written where they lie: each is (numbers, place of the first of each of the P
    rows, distance of steps), neighbours in the last axis. ``sizes``: T, K, V.
    """
    (q, q_rows, q_step), (k, k_rows, k_step), (v, v_rows, v_step), (out, out_rows, out_step) = query, key, value, y
    (time, keys, values), dtype = sizes, state.dtype
    blocks = (values + LANES - 1) // LANES
    h, lanes = np.empty((keys, LANES), dtype), np.zeros((1, LANES), dtype)
    for task in range(start, stop):
        row, first = task // blocks, task % blocks * LANES
        width = min(LANES, values - first)
        _load_columns(h, state[row], first)
        for t in range(time):
            at_q, at_k = q_rows[row] + t * q_step, k_rows[row] + t * k_step
            at_v, at_y = v_rows[row] + t * v_step + first, out_rows[row] + t * out_step + first
            if width < LANES:
                for lane in range(width):
                    lanes[0, lane] = v[at_v + lane]
            written = load(lanes, 0) if width < LANES else load_from(v, at_v)
            if beta.shape[2]:
                written = _written(h, k[at_k : at_k + keys], decay[row, t], beta[row, t], written)
            if decay.shape[2]:
                read = _step_read(h, written, k, at_k, decay[row, t], q, at_q)
            else:
                read = _added_read(h, written, k, at_k, q, at_q)
            if width < LANES:
                store(lanes, 0, read)
                for lane in range(width):
                    out[at_y + lane] = lanes[0, lane]
            else:
                store_to(out, at_y, read)
        _store_columns(h, state[row], first)


@jit
def backward(grad, query, key, value, beta, decay, initial, dstate, dq, dk, dv, dbeta, ddecay, start, stop):
    """Blocks of (row, block of columns); ``dstate`` goes from the gradient of the last state to that of the first.

    dq, dk, dbeta and ddecay [P, blocks, T, ·] have a place for each block: they are sums over columns.
    """
    time, keys, values, dtype = query.shape[1], query.shape[2], value.shape[2], grad.dtype
    blocks, chunks = (values + LANES - 1) // LANES, (time + CHUNK - 1) // CHUNK
    starts = np.empty((chunks + 1, keys, LANES), dtype)
    visited = np.empty((CHUNK + 1, keys, LANES), dtype)
    g, written = np.empty((keys, LANES), dtype), np.empty((CHUNK, LANES), dtype)
    tile_value, tile_grad = np.empty((CHUNK, LANES), dtype), np.empty((CHUNK, LANES), dtype)
    for task in range(start, stop):
        row, block = task // blocks, task % blocks
        first = block * LANES
        _load_columns(starts[0], initial[row], first)
        for chunk in range(chunks):
            begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, time)
            starts[chunk + 1] = starts[chunk]
            _load_columns(tile_value, value[row, begin:end], first)
            h = starts[chunk + 1]
            for t in range(begin, end):
                _step(h, h, key[row, t], decay[row, t], beta[row, t], load(tile_value, t - begin))
        _load_columns(g, dstate[row], first)
        for chunk in range(chunks - 1, -1, -1):
            begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, time)
            _load_columns(tile_value, value[row, begin:end], first)
            _load_columns(tile_grad, grad[row, begin:end], first)
            visited[0] = starts[chunk]
            for s in range(end - begin):
                t = begin + s
                step = _step(visited[s], visited[s + 1], key[row, t], decay[row, t], beta[row, t], load(tile_value, s))
                store(written, s, step)
            for s in range(end - begin - 1, -1, -1):
                t = begin + s
                above, wrote, slope = load(tile_grad, s), load(written, s), fill(dtype.type(0))
                q, slope_q, slope_k = query[row, t], dq[row, block, t], dk[row, block, t]
                for k in range(keys):
                    here = load(g, k) + fill(q[k]) * above
                    store(g, k, here)
                    slope = slope + here * fill(key[row, t, k])
                    slope_q[k] = total(load(visited[s + 1], k) * above)
                    slope_k[k] = total(here * wrote)
                if beta.shape[2]:
                    slopes = (slope_k, dbeta[row, block, t])
                    slope = _delta(
                        g, slope, load(tile_value, s), visited[s], key[row, t], decay[row, t], beta[row, t], slopes
                    )
                store(tile_value, s, slope)
                if decay.shape[2]:
                    _decayed(g, visited[s], decay[row, t], ddecay[row, block, t])
            _store_columns(tile_value, dv[row, begin:end], first)
        _store_columns(g, dstate[row], first)


@part
def _delta(g, slope, value, before, key, decay, beta, slopes):
    """Through w = β (v − S'ᵀk), S' the decayed state: from ∂w to ∂v; adds to ∂k, sets ∂β, takes from ∂S'."""
    slope_k, slope_beta = slopes
    error = value
    for k in range(key.shape[0]):
        error = error - fill(key[k] * _factor(decay, k)) * load(before, k)
    slope_beta[0] = total(slope * error)
    slope = slope * fill(beta[0])
    for k in range(key.shape[0]):
        slope_k[k] -= _factor(decay, k) * total(load(before, k) * slope)
        store(g, k, load(g, k) - fill(key[k]) * slope)
    return slope


@part
def _decayed(g, before, decay, slope):
    """Through S' = diag(a) S."""
    for k in range(g.shape[0]):
        slope[k if decay.shape[0] > 1 else 0] += total(load(g, k) * load(before, k))
        store(g, k, load(g, k) * fill(_factor(decay, k)))
