"""Registries find rules, kernels and lowerings by scanning their package: adding one is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType

__all__ = ["scan"]


@cache
def scan(package: str) -> tuple[ModuleType, ...]:
    """Import every module of ``package``, in alphabetical order."""
    root = importlib.import_module(package)
    names = sorted(info.name for info in pkgutil.iter_modules(root.__path__))
    return tuple(importlib.import_module(f"{package}.{name}") for name in names)
