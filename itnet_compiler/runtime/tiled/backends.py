"""Which implementation runs a call: one compiled for the device where it is possible, else tiles in plain torch."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType

from ...settings import NEAR_MISSES, debug
from . import plain
from .problem import Problem

__all__ = ["available", "backend", "choice"]

# Device type → (package that compiles for it, module that runs it).
_COMPILED = {"cpu": ("llvmlite", "native"), "cuda": ("triton", "gpu")}


@cache
def available(device: str) -> bool:
    """Whether calls on devices of this type can be compiled."""
    return device in _COMPILED and importlib.util.find_spec(_COMPILED[device][0]) is not None


def backend(problem: Problem) -> ModuleType:
    """The module whose ``forward`` and ``backward`` run a call."""
    if not (problem.value.numel() and problem.queries):
        return plain
    module, reasons = choice(problem, problem.value.device.type)
    if reasons:
        debug(NEAR_MISSES, "tiled integral in plain torch: %s", "; ".join(reasons))
    return module


def choice(problem: Problem, device: str) -> tuple[ModuleType, tuple[str, ...]]:
    """The module that runs a call on a device of this type; where that is plain torch, why."""
    if not available(device):
        missing = f"{_COMPILED[device][0]} is not installed" if device in _COMPILED else f"no code is made for {device}"
        return plain, (missing,)
    module = importlib.import_module(f"{__package__}.{_COMPILED[device][1]}")
    reasons = module.refusals(problem)
    return (plain, reasons) if reasons else (module, ())
