"""Triton kernels of the scans: one program for each block of channels or columns, the state in its registers.

Loads past the end of an axis give 0, and a lane of zeros stays one, so that only stores need masks of their own.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = ["linear", "matrix", "matrix_backward", "selective", "selective_backward"]


@triton.jit
def linear(
    decay, source, state, target, time, width, decay_step, decay_column, reverse: tl.constexpr, block: tl.constexpr
):
    """h_t = a_t h_{t−1} + x_t for ``block`` columns; ``state`` goes from first to last."""
    columns = tl.program_id(0) * block + tl.arange(0, block)
    inside = columns < width
    h = tl.load(state + columns, inside, other=0.0)
    for step in range(time):
        t = tl.cast(time - 1 - step if reverse else step, tl.int64)
        a = tl.load(decay + t * decay_step + columns * decay_column, inside, other=0.0)
        h = a * h + tl.load(source + t * width + columns, inside, other=0.0)
        tl.store(target + t * width + columns, h, inside)
    tl.store(state + columns, h, inside)


@triton.jit
def selective(u, delta, A, B, C, state, y, channels, time, states, block: tl.constexpr, padded: tl.constexpr):
    """u, delta, y [Bt, T, D]; B, C [Bt, T, N]; ``state`` [Bt, D, N] goes from first to last."""
    batch = tl.program_id(1).to(tl.int64)
    d, n = tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, padded)
    some, here = d < channels, n < states
    both = some[:, None] & here[None, :]
    entries = d[:, None] * states + n[None, :]
    a = tl.load(A + entries, both, other=0.0)
    h = tl.load(state + batch * channels * states + entries, both, other=0.0)
    for t in range(time):
        row = batch * time + t
        step = tl.load(delta + row * channels + d, some, other=0.0)
        x = tl.load(u + row * channels + d, some, other=0.0)
        b = tl.load(B + row * states + n, here, other=0.0)
        c = tl.load(C + row * states + n, here, other=0.0)
        h = tl.exp(step[:, None] * a) * h + (step * x)[:, None] * b[None, :]
        tl.store(y + row * channels + d, tl.sum(h * c[None, :], 1), some)
    tl.store(state + batch * channels * states + entries, h, both)


@triton.jit
def selective_backward(
    grad,
    u,
    delta,
    A,
    B,
    C,
    initial,
    dstate,
    starts,
    visited,
    du,
    ddelta,
    dA,
    dB,
    dC,
    channels,
    time,
    states,
    chunk,
    block: tl.constexpr,
    padded: tl.constexpr,
):
    """Gradients, last step first; states are computed again from one a chunk.

    ``starts`` [Bt, chunks, D, N] and ``visited`` [Bt, chunk, D, N] are room to work in; dA is [Bt, D, N], dB and dC
    [Bt, blocks, T, N]; ``dstate`` goes from the gradient of the last state to that of the first.
    """
    batch, blocks = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    d, n = tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, padded)
    some, here = d < channels, n < states
    both = some[:, None] & here[None, :]
    entries = d[:, None] * states + n[None, :]
    size = channels * states
    a = tl.load(A + entries, both, other=0.0)
    h = tl.load(initial + batch * size + entries, both, other=0.0)
    chunks = (time + chunk - 1) // chunk
    for t in range(time):
        if t % chunk == 0:
            tl.store(starts + (batch * chunks + t // chunk) * size + entries, h, both)
        row = batch * time + t
        step = tl.load(delta + row * channels + d, some, other=0.0)
        x = tl.load(u + row * channels + d, some, other=0.0)
        b = tl.load(B + row * states + n, here, other=0.0)
        h = tl.exp(step[:, None] * a) * h + (step * x)[:, None] * b[None, :]
    g = tl.load(dstate + batch * size + entries, both, other=0.0)
    da = tl.zeros([block, padded], a.dtype)
    tl.debug_barrier()  # one thread may read what another has written
    for back in range(chunks):
        first = (chunks - 1 - back) * chunk
        steps = tl.minimum(chunk, time - first)
        h = tl.load(starts + (batch * chunks + chunks - 1 - back) * size + entries, both, other=0.0)
        for s in range(steps):
            row = batch * time + first + s
            tl.store(visited + (batch * chunk + s) * size + entries, h, both)
            step = tl.load(delta + row * channels + d, some, other=0.0)
            x = tl.load(u + row * channels + d, some, other=0.0)
            b = tl.load(B + row * states + n, here, other=0.0)
            h = tl.exp(step[:, None] * a) * h + (step * x)[:, None] * b[None, :]
        tl.debug_barrier()
        for s in range(steps):
            t = first + steps - 1 - s
            row = batch * time + t
            step = tl.load(delta + row * channels + d, some, other=0.0)
            x = tl.load(u + row * channels + d, some, other=0.0)
            above = tl.load(grad + row * channels + d, some, other=0.0)
            b = tl.load(B + row * states + n, here, other=0.0)
            c = tl.load(C + row * states + n, here, other=0.0)
            before = tl.load(visited + (batch * chunk + steps - 1 - s) * size + entries, both, other=0.0)
            factor = tl.exp(step[:, None] * a)
            place = ((batch * blocks + tl.program_id(0)) * time + t) * states + n
            now = factor * before + (step * x)[:, None] * b[None, :]
            tl.store(dC + place, tl.sum(above[:, None] * now, 0), here)
            g += above[:, None] * c[None, :]
            tl.store(dB + place, tl.sum(g * (step * x)[:, None], 0), here)
            from_input = tl.sum(g * b[None, :], 1)
            g = g * factor
            exponent = g * before
            da += exponent * step[:, None]
            tl.store(ddelta + row * channels + d, tl.sum(exponent * a, 1) + from_input * x, some)
            tl.store(du + row * channels + d, from_input * step, some)
        tl.debug_barrier()
    tl.store(dstate + batch * size + entries, g, both)
    tl.store(dA + batch * size + entries, da, both)


@triton.jit
def _step(h, row, key, value, beta, decay, k, v, inside, some, keys, values, decays, delta: tl.constexpr):
    """The state before and after one step, what was written, and what a delta rule found missing."""
    line = tl.load(key + row * keys + k, inside, other=0.0)
    wanted = tl.load(value + row * values + v, some, other=0.0)
    if decays > 0:
        h = tl.load(decay + row * decays + k * (decays > 1), inside, other=0.0)[:, None] * h
    error = wanted
    if delta:
        error = wanted - tl.sum(line[:, None] * h, 0)
        wanted = error * tl.load(beta + row)
    return h, h + line[:, None] * wanted[None, :], wanted, error


@triton.jit
def matrix(
    query,
    key,
    value,
    beta,
    decay,
    state,
    y,
    time,
    keys,
    values,
    decays,
    delta: tl.constexpr,
    block: tl.constexpr,
    padded: tl.constexpr,
):
    """Operands [P, T, ·]; ``state`` [P, K, V] goes from first to last. One program a row and ``block`` columns."""
    lead = tl.program_id(1).to(tl.int64)
    v, k = tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, padded)
    some, inside = v < values, k < keys
    both = inside[:, None] & some[None, :]
    entries = lead * keys * values + k[:, None] * values + v[None, :]
    h = tl.load(state + entries, both, other=0.0)
    for t in range(time):
        row = lead * time + t
        _, h, _, _ = _step(h, row, key, value, beta, decay, k, v, inside, some, keys, values, decays, delta)
        q = tl.load(query + row * keys + k, inside, other=0.0)
        tl.store(y + row * values + v, tl.sum(q[:, None] * h, 0), some)
    tl.store(state + entries, h, both)


@triton.jit
def matrix_backward(
    grad,
    query,
    key,
    value,
    beta,
    decay,
    initial,
    dstate,
    starts,
    visited,
    dq,
    dk,
    dv,
    dbeta,
    ddecay,
    time,
    keys,
    values,
    decays,
    chunk,
    delta: tl.constexpr,
    block: tl.constexpr,
    padded: tl.constexpr,
):
    """Gradients, last step first; dq, dk, ddecay [P, blocks, T, K] and dbeta [P, blocks, T] are sums over columns.

    ``starts`` [P, chunks, K, V] and ``visited`` [P, chunk, K, V] are room to work in. The gradient of a decay comes
    for every key.
    """
    lead, blocks = tl.program_id(1).to(tl.int64), tl.num_programs(0)
    v, k = tl.program_id(0) * block + tl.arange(0, block), tl.arange(0, padded)
    some, inside = v < values, k < keys
    both = inside[:, None] & some[None, :]
    size = keys * values
    entries = k[:, None] * values + v[None, :]
    h = tl.load(initial + lead * size + entries, both, other=0.0)
    chunks = (time + chunk - 1) // chunk
    for t in range(time):
        if t % chunk == 0:
            tl.store(starts + (lead * chunks + t // chunk) * size + entries, h, both)
        _, h, _, _ = _step(h, lead * time + t, key, value, beta, decay, k, v, inside, some, keys, values, decays, delta)
    g = tl.load(dstate + lead * size + entries, both, other=0.0)
    tl.debug_barrier()  # one thread may read what another has written
    for back in range(chunks):
        first = (chunks - 1 - back) * chunk
        steps = tl.minimum(chunk, time - first)
        h = tl.load(starts + (lead * chunks + chunks - 1 - back) * size + entries, both, other=0.0)
        for s in range(steps):
            tl.store(visited + (lead * chunk + s) * size + entries, h, both)
            row = lead * time + first + s
            _, h, _, _ = _step(h, row, key, value, beta, decay, k, v, inside, some, keys, values, decays, delta)
        tl.debug_barrier()
        for s in range(steps):
            t = first + steps - 1 - s
            row, place = lead * time + t, (lead * blocks + tl.program_id(0)) * time + t
            before = tl.load(visited + (lead * chunk + steps - 1 - s) * size + entries, both, other=0.0)
            kept, after, written, error = _step(
                before, row, key, value, beta, decay, k, v, inside, some, keys, values, decays, delta
            )
            above = tl.load(grad + row * values + v, some, other=0.0)
            line = tl.load(key + row * keys + k, inside, other=0.0)
            g += tl.load(query + row * keys + k, inside, other=0.0)[:, None] * above[None, :]
            tl.store(dq + place * keys + k, tl.sum(after * above[None, :], 1), inside)
            slope = tl.sum(g * line[:, None], 0)
            slope_key = tl.sum(g * written[None, :], 1)
            if delta:
                tl.store(dbeta + place, tl.sum(slope * error, 0))
                slope = slope * tl.load(beta + row)
                slope_key -= tl.sum(kept * slope[None, :], 1)
                g -= line[:, None] * slope[None, :]
            tl.store(dk + place * keys + k, slope_key, inside)
            tl.store(dv + row * values + v, slope, some)
            if decays > 0:
                tl.store(ddecay + place * keys + k, tl.sum(g * before, 1), inside)
                g = g * tl.load(decay + row * decays + k * (decays > 1), inside, other=0.0)[:, None]
        tl.debug_barrier()
    tl.store(dstate + lead * size + entries, g, both)
