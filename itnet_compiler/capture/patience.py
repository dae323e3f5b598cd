"""A time limit for tracing with symbolic sizes. Padded and shifted windows (Swin) make the algebra of sizes explode."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Iterator
from typing import Any

from torch.fx.experimental.symbolic_shapes import ShapeEnv

__all__ = ["PATIENCE", "OutOfTime", "limited"]

# Seconds of processor time for tracing with all sizes symbolic: a busy machine must not change what is captured.
PATIENCE = 20.0


class OutOfTime(BaseException):
    """Tracing took too long. No ``Exception``, since tracing catches those in places."""


@contextlib.contextmanager
def limited(seconds: float | None) -> Iterator[None]:
    """Raise ``OutOfTime`` at a question about sizes once this thread has worked for ``seconds`` in the block.

    Not where all but the first axes have been fixed by then: tracing again with those alone would take as long.
    """
    if seconds is None:
        yield
        return
    thread, deadline = threading.get_ident(), time.thread_time() + seconds
    original = ShapeEnv.evaluate_expr

    def evaluate(self: ShapeEnv, *args: Any, **kwargs: Any) -> Any:
        nonlocal deadline
        if threading.get_ident() == thread and time.thread_time() > deadline:
            if _has_inner_sizes(self):
                raise OutOfTime
            deadline = math.inf
        return original(self, *args, **kwargs)

    ShapeEnv.evaluate_expr = evaluate  # type: ignore[method-assign]
    try:
        yield
    finally:
        ShapeEnv.evaluate_expr = original  # type: ignore[method-assign]


def _has_inner_sizes(environment: ShapeEnv) -> bool:
    """Whether the size of an axis other than the first one is still symbolic."""
    axes = {
        symbol: getattr(sources[0], "idx", None) for symbol, sources in environment.var_to_sources.items() if sources
    }
    return any(axes.get(free) for symbol in axes for free in environment.replace(symbol).free_symbols)
