"""Which implementation of the scans runs on a device: compiled where its compiler is installed, else plain torch."""

from __future__ import annotations

import importlib
import importlib.util
from functools import cache
from types import ModuleType

from torch import Tensor

from . import eager

__all__ = ["available", "of"]

# Device type → (package that compiles for it, module with its kernels).
_COMPILED = {"cpu": ("numba", "cpu"), "cuda": ("triton", "cuda")}


def of(tensor: Tensor) -> ModuleType:
    """The module whose functions compute scans where ``tensor`` is."""
    return _module(tensor.device.type)


def available(device: str) -> bool:
    """Whether compiled kernels are there for devices of this type."""
    return device in _COMPILED and importlib.util.find_spec(_COMPILED[device][0]) is not None


@cache
def _module(device: str) -> ModuleType:
    if not available(device):
        return eager
    return importlib.import_module(f"{__package__}.{_COMPILED[device][1]}")
