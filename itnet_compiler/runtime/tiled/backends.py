"""Which implementation runs a call: machine code where it is possible, else tiles in plain torch."""

from __future__ import annotations

import importlib.util
from functools import cache
from types import ModuleType

from ...settings import NEAR_MISSES, debug
from . import plain
from .problem import Problem

__all__ = ["available", "backend"]


@cache
def available() -> bool:
    """Whether machine code for the CPU can be made: llvmlite is installed."""
    return importlib.util.find_spec("llvmlite") is not None


def backend(problem: Problem) -> ModuleType:
    """The module whose ``forward`` and ``backward`` run a call."""
    nothing = not (problem.value.numel() and problem.queries)
    if nothing or not available():
        return plain
    from . import native

    reasons = native.refusals(problem)
    if reasons:
        debug(NEAR_MISSES, "tiled integral in plain torch: %s", "; ".join(reasons))
        return plain
    return native
