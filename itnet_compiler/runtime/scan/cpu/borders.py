"""Matrix and delta scans with one decay a step on the CPU: the state and its gradient at the borders of chunks."""

from __future__ import annotations

import numpy as np

from .compile import jit, part
from .lanes import LANES, fill_from, load, pointer, store, zeros
from .matrix import deltas_written, load_columns, store_columns

__all__ = ["retreat", "visit"]


@part
def _visit(tile, values, key, decay, beta, place):
    """A chunk of a block of the state in place; by the delta rule ``values`` become what is written, without β."""
    steps, keys, delta = key.shape[1], key.shape[2], beta.shape[2] > 0
    h, v, k = pointer(tile.ctypes.data, tile), pointer(values.ctypes.data, tile), pointer(key.ctypes.data, tile)
    a, b, first = pointer(decay.ctypes.data, tile), pointer(beta.ctypes.data, tile), place * steps
    together = steps // 4 * 4 if delta else 0  # four at once read the state twice instead of eight times
    for s in range(0, together, 4):
        t, row = first + s, (load(v, s), load(v, s + 1), load(v, s + 2), load(v, s + 3))
        (w0, w1, w2, w3), errors = deltas_written(h, keys, row, k, t * keys, keys, a, t, 1, b, t, 1)
        store(v, s, errors[0])
        store(v, s + 1, errors[1])
        store(v, s + 2, errors[2])
        store(v, s + 3, errors[3])
        a0, a1, a2, a3 = fill_from(a, t), fill_from(a, t + 1), fill_from(a, t + 2), fill_from(a, t + 3)
        k0, k1, k2, k3 = t * keys, (t + 1) * keys, (t + 2) * keys, (t + 3) * keys
        for n in range(keys):
            here = a0 * load(h, n) + fill_from(k, k0 + n) * w0
            here = a1 * here + fill_from(k, k1 + n) * w1
            here = a2 * here + fill_from(k, k2 + n) * w2
            store(h, n, a3 * here + fill_from(k, k3 + n) * w3)
    for s in range(together, steps):
        t, value = first + s, load(v, s)
        at_k, factor = t * keys, fill_from(a, t)
        if delta:
            known = zeros(h)
            for n in range(keys):
                known = known + fill_from(k, at_k + n) * load(h, n)
            value = value - factor * known
            store(v, s, value)
            value = value * fill_from(b, t)
        for n in range(keys):
            store(h, n, factor * load(h, n) + fill_from(k, at_k + n) * value)


@jit
def visit(key, value, beta, decay, initial, starts, errors, start, stop):
    """Blocks of (row, block of columns): ``starts`` [P · chunks, K, V] gets the states before each chunk.

    Operands [P · chunks, steps, ·]; ``beta`` of width 0 where there is no delta rule, else ``errors`` gets v − S'ᵀk, S'
    the decayed state.
    """
    (_, steps, keys), values, dtype = key.shape, value.shape[2], key.dtype
    blocks, chunks = (values + LANES - 1) // LANES, key.shape[0] // initial.shape[0]
    h, tile = np.empty((keys, LANES), dtype), np.empty((steps, LANES), dtype)
    for task in range(start, stop):
        row, first = task // blocks, task % blocks * LANES
        load_columns(h, initial[row], first)
        for place in range(row * chunks, (row + 1) * chunks):
            store_columns(h, starts[place], first)
            load_columns(tile, value[place], first)
            _visit(h, tile, key, decay, beta, place)
            if beta.shape[2] > 0:
                store_columns(tile, errors[place], first)


@part
def _retreat(tile, grads, query, key, decay, beta, place):
    """A chunk of a block of the gradient of the state, last step first; ``grads`` become those of what is written."""
    steps, keys, delta = key.shape[1], key.shape[2], beta.shape[2] > 0
    h, y, q = pointer(tile.ctypes.data, tile), pointer(grads.ctypes.data, tile), pointer(query.ctypes.data, tile)
    k, a, b = pointer(key.ctypes.data, tile), pointer(decay.ctypes.data, tile), pointer(beta.ctypes.data, tile)
    first = place * steps
    for s in range(steps - 1, -1, -1):
        t, above, slope = first + s, load(y, s), zeros(h)
        at_k, factor = t * keys, fill_from(a, t)
        if delta:
            for n in range(keys):
                here = load(h, n) + fill_from(q, at_k + n) * above
                slope = slope + here * fill_from(k, at_k + n)
            taken = slope * fill_from(b, t)
            for n in range(keys):
                here = load(h, n) + fill_from(q, at_k + n) * above - fill_from(k, at_k + n) * taken
                store(h, n, factor * here)
        else:
            for n in range(keys):
                here = load(h, n) + fill_from(q, at_k + n) * above
                slope = slope + here * fill_from(k, at_k + n)
                store(h, n, factor * here)
        store(y, s, slope)


@jit
def retreat(grad, query, key, beta, decay, dstate, ends, slopes, start, stop):
    """Blocks of (row, block of columns), last step first: ``dstate`` goes from the gradient of the last state to that
    of the first one, ``ends`` [P · chunks, K, V] gets those of the states after each chunk, and ``slopes`` those of
    what each step writes along its key. Operands as of ``visit``.
    """
    (_, steps, keys), values, dtype = key.shape, grad.shape[2], key.dtype
    blocks, chunks = (values + LANES - 1) // LANES, key.shape[0] // dstate.shape[0]
    h, tile = np.empty((keys, LANES), dtype), np.empty((steps, LANES), dtype)
    for task in range(start, stop):
        row, first = task // blocks, task % blocks * LANES
        load_columns(h, dstate[row], first)
        for place in range((row + 1) * chunks - 1, row * chunks - 1, -1):
            store_columns(h, ends[place], first)
            load_columns(tile, grad[place], first)
            _retreat(h, tile, query, key, decay, beta, place)
            store_columns(tile, slopes[place], first)
        store_columns(h, dstate[row], first)
