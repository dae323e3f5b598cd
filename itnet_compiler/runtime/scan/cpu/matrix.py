"""Matrix and delta scans on the CPU. Columns of the state do not meet: a block of them at a time, one lane each."""

from __future__ import annotations

import numpy as np

from .compile import jit, part
from .lanes import LANES, fill, fill_from, get, load, load_from, pointer, put, store, store_to, total, zeros

__all__ = ["backward", "forward"]

CHUNK = 64
# Blocks that take turns, each for so many steps, so that what lies side by side in a step is read while it is near.
GROUP, STRETCH = 8, 16


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


# From here to ``forward``: pointers, each with the place of the first number, since arrays are counted at every call.
# ``h`` is a block of the state, [K, lanes]; ``near`` is the distance of the factors of two keys, 0 where they have one.


@part
def _delta_written(h, keys, key, at_k, decay, at_a, near, beta, value):
    """As ``_written`` with the delta rule."""
    for k in range(keys):
        value = value - fill_from(key, at_k + k) * fill_from(decay, at_a + near * k) * load(h, k)
    return value * beta


@part
def _step_read(h, keys, written, key, at_k, decay, at_a, near, query, at_q):
    """One step of a block in place, and Σ_k q_k h_k after it: even and odd k apart, since sums wait for one another."""
    even = odd = zeros(h)
    for k in range(0, keys - 1, 2):
        one = fill_from(decay, at_a + near * k) * load(h, k) + fill_from(key, at_k + k) * written
        two = fill_from(decay, at_a + near * (k + 1)) * load(h, k + 1) + fill_from(key, at_k + k + 1) * written
        store(h, k, one)
        store(h, k + 1, two)
        even = even + fill_from(query, at_q + k) * one
        odd = odd + fill_from(query, at_q + k + 1) * two
    if keys % 2:
        k = keys - 1
        one = fill_from(decay, at_a + near * k) * load(h, k) + fill_from(key, at_k + k) * written
        store(h, k, one)
        even = even + fill_from(query, at_q + k) * one
    return even + odd


@part
def _added_read(h, keys, written, key, at_k, query, at_q):
    """``_step_read`` where nothing decays."""
    read = zeros(h)
    for k in range(keys):
        value = load(h, k) + fill_from(key, at_k + k) * written
        store(h, k, value)
        read = read + fill_from(query, at_q + k) * value
    return read


@part
def _steps_read(h, keys, written, key, at_k, k_step, decay, at_a, a_step, near, query, at_q, q_step):
    """``_step_read`` for four steps at once: a row of the state is read and written once for all of them."""
    w0, w1, w2, w3 = written
    y0 = y1 = y2 = y3 = zeros(h)
    k0, k1, k2, k3 = at_k, at_k + k_step, at_k + 2 * k_step, at_k + 3 * k_step
    a0, a1, a2, a3 = at_a, at_a + a_step, at_a + 2 * a_step, at_a + 3 * a_step
    q0, q1, q2, q3 = at_q, at_q + q_step, at_q + 2 * q_step, at_q + 3 * q_step
    for k in range(keys):
        value = fill_from(decay, a0 + near * k) * load(h, k) + fill_from(key, k0 + k) * w0
        y0 = y0 + fill_from(query, q0 + k) * value
        value = fill_from(decay, a1 + near * k) * value + fill_from(key, k1 + k) * w1
        y1 = y1 + fill_from(query, q1 + k) * value
        value = fill_from(decay, a2 + near * k) * value + fill_from(key, k2 + k) * w2
        y2 = y2 + fill_from(query, q2 + k) * value
        value = fill_from(decay, a3 + near * k) * value + fill_from(key, k3 + k) * w3
        y3 = y3 + fill_from(query, q3 + k) * value
        store(h, k, value)
    return y0, y1, y2, y3


@part
def _steps_added(h, keys, written, key, at_k, k_step, query, at_q, q_step):
    """``_steps_read`` where nothing decays."""
    w0, w1, w2, w3 = written
    y0 = y1 = y2 = y3 = zeros(h)
    k0, k1, k2, k3 = at_k, at_k + k_step, at_k + 2 * k_step, at_k + 3 * k_step
    q0, q1, q2, q3 = at_q, at_q + q_step, at_q + 2 * q_step, at_q + 3 * q_step
    for k in range(keys):
        value = load(h, k) + fill_from(key, k0 + k) * w0
        y0 = y0 + fill_from(query, q0 + k) * value
        value = value + fill_from(key, k1 + k) * w1
        y1 = y1 + fill_from(query, q1 + k) * value
        value = value + fill_from(key, k2 + k) * w2
        y2 = y2 + fill_from(query, q2 + k) * value
        value = value + fill_from(key, k3 + k) * w3
        y3 = y3 + fill_from(query, q3 + k) * value
        store(h, k, value)
    return y0, y1, y2, y3


@part
def _row(spare, source, at, width):
    """``width`` numbers from a place on, with zeros behind them."""
    if width == LANES:
        return load_from(source, at)
    for lane in range(width):
        put(spare, lane, get(source, at + lane))
    return load(spare, 0)


@part
def _write_row(spare, target, at, width, value):
    if width == LANES:
        store_to(target, at, value)
        return
    store(spare, 0, value)
    for lane in range(width):
        put(target, at + lane, get(spare, lane))


@part
def _advance(tile, addresses, at, strides, steps, width, has, room):
    """``steps`` of one block, from the places ``at`` on: four at once, unless what is written depends on the state."""
    q, k, v = pointer(addresses[0], tile), pointer(addresses[1], tile), pointer(addresses[2], tile)
    out, a, b = pointer(addresses[3], tile), pointer(addresses[4], tile), pointer(addresses[5], tile)
    h, spare, keys = pointer(tile.ctypes.data, tile), pointer(room.ctypes.data, room), tile.shape[0]
    (at_q, at_k, at_v, at_y, at_a, at_b), (q_step, k_step, v_step, y_step, a_step, b_step) = at, strides
    decays, delta, near = has
    together = 0 if delta else steps // 4 * 4
    for t in range(0, together, 4):
        this_v, this_y = at_v + t * v_step, at_y + t * y_step
        this_k, this_a, this_q = at_k + t * k_step, at_a + t * a_step, at_q + t * q_step
        written = (
            _row(spare, v, this_v, width),
            _row(spare, v, this_v + v_step, width),
            _row(spare, v, this_v + 2 * v_step, width),
            _row(spare, v, this_v + 3 * v_step, width),
        )
        if decays:
            y = _steps_read(h, keys, written, k, this_k, k_step, a, this_a, a_step, near, q, this_q, q_step)
        else:
            y = _steps_added(h, keys, written, k, this_k, k_step, q, this_q, q_step)
        _write_row(spare, out, this_y, width, y[0])
        _write_row(spare, out, this_y + y_step, width, y[1])
        _write_row(spare, out, this_y + 2 * y_step, width, y[2])
        _write_row(spare, out, this_y + 3 * y_step, width, y[3])
    for t in range(together, steps):
        value = _row(spare, v, at_v + t * v_step, width)
        this_k, this_a, this_q = at_k + t * k_step, at_a + t * a_step, at_q + t * q_step
        if delta:
            value = _delta_written(h, keys, k, this_k, a, this_a, near, fill_from(b, at_b + t * b_step), value)
        if decays:
            read = _step_read(h, keys, value, k, this_k, a, this_a, near, q, this_q)
        else:
            read = _added_read(h, keys, value, k, this_k, q, this_q)
        _write_row(spare, out, at_y + t * y_step, width, read)


@jit
def forward(addresses, places, strides, sizes, has, state, start, stop):
    """Blocks ``start`` to ``stop`` of (row, block of columns); ``state`` [P, K, V] goes from first to last.

    Query, key, value, y, decay and beta are read and written where they lie: ``addresses`` of their first numbers,
    ``places`` of the first one of each of the P rows, ``strides`` of steps. ``sizes``: T, K, V. ``has``: whether there
    are a decay and a beta, and the distance of the factors of two keys.
    """
    q_rows, k_rows, v_rows, y_rows, a_rows, b_rows = places
    q_step, k_step, v_step, y_step, a_step, b_step = strides
    (time, keys, values), dtype = sizes, state.dtype
    blocks = (values + LANES - 1) // LANES
    h, room = np.empty((GROUP, keys, LANES), dtype), np.zeros((1, LANES), dtype)
    for group in range(start, stop, GROUP):
        end = min(group + GROUP, stop)
        for task in range(group, end):
            _load_columns(h[task - group], state[task // blocks], task % blocks * LANES)
        for begin in range(0, time, STRETCH):
            for task in range(group, end):
                row, first = task // blocks, task % blocks * LANES
                at = (
                    q_rows[row] + begin * q_step,
                    k_rows[row] + begin * k_step,
                    v_rows[row] + begin * v_step + first,
                    y_rows[row] + begin * y_step + first,
                    a_rows[row] + begin * a_step,
                    b_rows[row] + begin * b_step,
                )
                steps, width = min(STRETCH, time - begin), min(LANES, values - first)
                _advance(h[task - group], addresses, at, strides, steps, width, has, room)
        for task in range(group, end):
            _store_columns(h[task - group], state[task // blocks], task % blocks * LANES)


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
