"""Which implementation runs a call: one compiled for the device where it is possible, else tiles in plain torch."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType

from ...settings import NEAR_MISSES, debug
from . import plain
from .problem import Problem

__all__ = ["available", "backend"]

# Device type → (package that compiles for it, module that runs it).
_COMPILED = {"cpu": ("llvmlite", "native"), "cuda": ("triton", "gpu")}


@cache
def available(device: str) -> bool:
    """Whether calls on devices of this type can be compiled."""
    return device in _COMPILED and importlib.util.find_spec(_COMPILED[device][0]) is not None


def backend(problem: Problem) -> ModuleType:
    """The module whose ``forward`` and ``backward`` run a call."""
    device = problem.value.device.type
    nothing = not (problem.value.numel() and problem.queries)
    if nothing or not available(device):
        return plain
    module = importlib.import_module(f"{__package__}.{_COMPILED[device][1]}")
    reasons = module.refusals(problem)
    if reasons:
        debug(NEAR_MISSES, "tiled integral in plain torch: %s", "; ".join(reasons))
        return plain
    return module
