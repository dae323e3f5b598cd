"""Linear scan on the CPU: it moves memory, and little else; a block of columns stays in the cache."""

from __future__ import annotations

from .compile import jit, part

__all__ = ["COLUMNS", "scan"]

COLUMNS = 512


@jit
def scan(decay, source, state, target, reverse, start, stop):  # type: ignore[no-untyped-def]
    """Blocks ``start`` to ``stop`` of columns. ``decay`` [T or 1, M or 1]; ``state`` goes from first to last."""
    time, width = source.shape
    for block in range(start, stop):
        first, last = block * COLUMNS, min((block + 1) * COLUMNS, width)
        h = state[first:last]
        for step in range(time):
            t = time - 1 - step if reverse else step
            factors = decay[t if decay.shape[0] > 1 else 0]
            if factors.shape[0] > 1:
                _each(factors[first:last], h, source[t, first:last], target[t, first:last])
            else:
                _all(factors[0], h, source[t, first:last], target[t, first:last])


@part
def _each(factors, h, source, target):  # type: ignore[no-untyped-def]
    for column in range(h.shape[0]):
        value = factors[column] * h[column] + source[column]
        h[column] = value
        target[column] = value


@part
def _all(factor, h, source, target):  # type: ignore[no-untyped-def]
    for column in range(h.shape[0]):
        value = factor * h[column] + source[column]
        h[column] = value
        target[column] = value
