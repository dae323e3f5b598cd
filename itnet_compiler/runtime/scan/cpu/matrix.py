"""Matrix and delta scans on the CPU. Columns of the state do not meet: a block of them at a time, one lane each."""

from __future__ import annotations

import numpy as np

from .compile import jit, part
from .lanes import LANES, fill, fill_from, get, load, load_from, pointer, put, store, store_to, total, zeros

__all__ = ["backward", "deltas_written", "forward", "load_columns", "store_columns"]

CHUNK = 64
# Blocks that take turns, each for so many steps, so that what lies side by side in a step is read while it is near.
GROUP, STRETCH = 8, 16


@part
def load_columns(tile, source, first):
    """tile[row, lane] = source[row, first + lane]; 0 where there is no column."""
    part = source[:, first : first + LANES]
    if part.shape[1] < LANES:
        tile[:] = 0
    for row in range(part.shape[0]):
        for lane in range(part.shape[1]):
            tile[row, lane] = part[row, lane]


@part
def store_columns(tile, target, first):
    """target[row, first + lane] = tile[row, lane]."""
    part = target[:, first : first + LANES]
    for row in range(part.shape[0]):
        for lane in range(part.shape[1]):
            part[row, lane] = tile[row, lane]


# From here to ``forward``: pointers, each with the place of the first number, since arrays are counted at every call.
# ``h`` is a block of the state, [K, lanes]; ``near`` is the distance of the factors of two keys, 0 where they have one.


@part
def _delta_written(h, keys, key, at_k, decay, at_a, near, beta, value):
    """What the key is multiplied with by the delta rule, β (v − S'ᵀk), S' the decayed state."""
    for k in range(keys):
        value = value - fill_from(key, at_k + k) * fill_from(decay, at_a + near * k) * load(h, k)
    return value * beta


@part
def _dot(h, key, one, other, count):
    """The product of two keys of ``count`` numbers, in all lanes; ``h`` gives the dtype."""
    lanes, whole = zeros(h), count // LANES * LANES
    for place in range(0, whole, LANES):
        lanes = lanes + load_from(key, one + place) * load_from(key, other + place)
    value = total(lanes)
    for place in range(whole, count):
        value = value + get(key, one + place) * get(key, other + place)
    return fill(value)


@part
def _known_keys(h, keys, key, at_k, k_step):
    """Sᵀk for the keys of four steps, S the state before them all."""
    r0 = r1 = r2 = r3 = zeros(h)
    k0, k1, k2, k3 = at_k, at_k + k_step, at_k + 2 * k_step, at_k + 3 * k_step
    for k in range(keys):
        value = load(h, k)
        r0 = r0 + fill_from(key, k0 + k) * value
        r1 = r1 + fill_from(key, k1 + k) * value
        r2 = r2 + fill_from(key, k2 + k) * value
        r3 = r3 + fill_from(key, k3 + k) * value
    return r0, r1, r2, r3


@part
def deltas_written(h, keys, values, key, at_k, k_step, decay, at_a, a_step, beta, at_b, b_step):
    """``_delta_written`` for four steps with one factor each, from the state before them all; and that without β.

    With S_t = a_t S_{t−1} + k_t w_tᵀ, what S_t recalls of a key is a_t times what S_{t−1} does, plus (k_t · k) w_t.
    """
    r0, r1, r2, r3 = _known_keys(h, keys, key, at_k, k_step)
    v0, v1, v2, v3 = values
    k0, k1, k2, k3 = at_k, at_k + k_step, at_k + 2 * k_step, at_k + 3 * k_step
    a0, a1 = fill_from(decay, at_a), fill_from(decay, at_a + a_step)
    a2, a3 = fill_from(decay, at_a + 2 * a_step), fill_from(decay, at_a + 3 * a_step)
    e0 = v0 - a0 * r0
    w0 = fill_from(beta, at_b) * e0
    r1 = a0 * r1 + _dot(h, key, k0, k1, keys) * w0
    r2 = a0 * r2 + _dot(h, key, k0, k2, keys) * w0
    r3 = a0 * r3 + _dot(h, key, k0, k3, keys) * w0
    e1 = v1 - a1 * r1
    w1 = fill_from(beta, at_b + b_step) * e1
    r2 = a1 * r2 + _dot(h, key, k1, k2, keys) * w1
    r3 = a1 * r3 + _dot(h, key, k1, k3, keys) * w1
    e2 = v2 - a2 * r2
    w2 = fill_from(beta, at_b + 2 * b_step) * e2
    r3 = a2 * r3 + _dot(h, key, k2, k3, keys) * w2
    e3 = v3 - a3 * r3
    w3 = fill_from(beta, at_b + 3 * b_step) * e3
    return (w0, w1, w2, w3), (e0, e1, e2, e3)


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
    """``steps`` of one block, from the places ``at`` on: four at once, unless the delta rule has a factor a key."""
    q, k, v = pointer(addresses[0], tile), pointer(addresses[1], tile), pointer(addresses[2], tile)
    out, a, b = pointer(addresses[3], tile), pointer(addresses[4], tile), pointer(addresses[5], tile)
    h, spare, keys = pointer(tile.ctypes.data, tile), pointer(room.ctypes.data, room), tile.shape[0]
    (at_q, at_k, at_v, at_y, at_a, at_b), (q_step, k_step, v_step, y_step, a_step, b_step) = at, strides
    decays, delta, near = has
    together = 0 if delta and near else steps // 4 * 4
    for t in range(0, together, 4):
        this_v, this_y = at_v + t * v_step, at_y + t * y_step
        this_k, this_a, this_q = at_k + t * k_step, at_a + t * a_step, at_q + t * q_step
        written = (
            _row(spare, v, this_v, width),
            _row(spare, v, this_v + v_step, width),
            _row(spare, v, this_v + 2 * v_step, width),
            _row(spare, v, this_v + 3 * v_step, width),
        )
        if delta:
            written, _ = deltas_written(
                h, keys, written, k, this_k, k_step, a, this_a, a_step, b, at_b + t * b_step, b_step
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
            load_columns(h[task - group], state[task // blocks], task % blocks * LANES)
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
            store_columns(h[task - group], state[task // blocks], task % blocks * LANES)


@part
def _visit(tiles, key, decay, beta, values, written, row, begin, steps, apart):
    """``steps`` of a block from its state, the first of ``tiles``: in place, or each ``apart`` rows behind the last."""
    keys, near = key.shape[2], 1 if decay.shape[2] > 1 else 0
    h, v, w = pointer(tiles.ctypes.data, tiles), pointer(values.ctypes.data, values), pointer(written.ctypes.data, key)
    k, a, b = pointer(key.ctypes.data, key), pointer(decay.ctypes.data, key), pointer(beta.ctypes.data, key)
    delta, factors, first = beta.shape[2] > 0, decay.shape[2], row * key.shape[1] + begin
    for s in range(steps):
        t, before = first + s, s * apart
        at_k, at_a, value = t * keys, t * factors, load(v, s)
        if delta:
            for n in range(keys):
                value = value - fill_from(k, at_k + n) * fill_from(a, at_a + near * n) * load(h, before + n)
            value = value * fill_from(b, t)
        store(w, s, value)
        for n in range(keys):
            kept = fill_from(a, at_a + near * n) * load(h, before + n)
            store(h, before + apart + n, kept + fill_from(k, at_k + n) * value)


@part
def _retreat(tile, visited, tiles, query, key, decay, beta, slopes, row, block, begin, steps):
    """The gradients of a chunk, last step first; ``tile`` is that of the state, and ∂v takes the place of v."""
    (values, grads, written), (dq, dk, dbeta, ddecay) = tiles, slopes
    keys, near, delta, factors = key.shape[2], 1 if decay.shape[2] > 1 else 0, beta.shape[2] > 0, decay.shape[2]
    g, h, v = pointer(tile.ctypes.data, tile), pointer(visited.ctypes.data, tile), pointer(values.ctypes.data, tile)
    y, w, q = pointer(grads.ctypes.data, tile), pointer(written.ctypes.data, tile), pointer(query.ctypes.data, tile)
    k, a, b = pointer(key.ctypes.data, tile), pointer(decay.ctypes.data, tile), pointer(beta.ctypes.data, tile)
    to_q, to_k = pointer(dq.ctypes.data, tile), pointer(dk.ctypes.data, tile)
    to_a, to_b = pointer(ddecay.ctypes.data, tile), pointer(dbeta.ctypes.data, tile)
    time = key.shape[1]
    first, out = row * time + begin, (row * dq.shape[1] + block) * time + begin
    for s in range(steps - 1, -1, -1):
        at_k, at_a, at, before, after = (first + s) * keys, (first + s) * factors, out + s, s * keys, (s + 1) * keys
        above, wrote, slope = load(y, s), load(w, s), zeros(g)
        for n in range(keys):
            here = load(g, n) + fill_from(q, at_k + n) * above
            store(g, n, here)
            slope = slope + here * fill_from(k, at_k + n)
            put(to_q, at * keys + n, total(load(h, after + n) * above))
            put(to_k, at * keys + n, total(here * wrote))
        if delta:  # from ∂w to ∂v, w = β (v − S'ᵀk), S' the decayed state
            error = load(v, s)
            for n in range(keys):
                error = error - fill_from(k, at_k + n) * fill_from(a, at_a + near * n) * load(h, before + n)
            put(to_b, at, total(slope * error))
            slope = slope * fill_from(b, first + s)
            for n in range(keys):
                taken = get(a, at_a + near * n) * total(load(h, before + n) * slope)
                put(to_k, at * keys + n, get(to_k, at * keys + n) - taken)
                store(g, n, load(g, n) - fill_from(k, at_k + n) * slope)
        store(v, s, slope)
        each = zeros(g)
        for n in range(keys):  # S' = diag(a) S
            here = load(g, n)
            product = here * load(h, before + n)
            if near:
                put(to_a, at * keys + n, total(product))
            else:
                each = each + product
            store(g, n, here * fill_from(a, at_a + near * n))
        if not near:
            put(to_a, at, total(each))


@jit
def backward(grad, query, key, value, beta, decay, initial, dstate, dq, dk, dv, dbeta, ddecay, start, stop):
    """Blocks of (row, block of columns); ``dstate`` goes from the gradient of the last state to that of the first.

    ``beta`` [P, T, 0] where there is no delta rule. dq, dk, dbeta and ddecay [P, blocks, T, ·] have a place for each
    block: they are sums over columns.
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
        load_columns(starts[0], initial[row], first)
        for chunk in range(chunks):
            begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, time)
            starts[chunk + 1] = starts[chunk]
            load_columns(tile_value, value[row, begin:end], first)
            _visit(starts[chunk + 1], key, decay, beta, tile_value, written, row, begin, end - begin, 0)
        load_columns(g, dstate[row], first)
        for chunk in range(chunks - 1, -1, -1):
            begin, end = chunk * CHUNK, min((chunk + 1) * CHUNK, time)
            load_columns(tile_value, value[row, begin:end], first)
            load_columns(tile_grad, grad[row, begin:end], first)
            visited[0] = starts[chunk]
            _visit(visited, key, decay, beta, tile_value, written, row, begin, end - begin, keys)
            tiles, slopes = (tile_value, tile_grad, written), (dq, dk, dbeta, ddecay)
            _retreat(g, visited, tiles, query, key, decay, beta, slopes, row, block, begin, end - begin)
            store_columns(tile_value, dv[row, begin:end], first)
        store_columns(g, dstate[row], first)
