"""Trap models and usages, by theme; see ``table`` for how to add one."""

from . import (  # noqa: F401 - they register themselves
    branches,
    calls,
    gradients,
    numbers,
    randomness,
    state,
    structure,
    training,
    usages,
    weights,
    writes,
)
from .table import TRAPS, USAGES

__all__ = ["TRAPS", "USAGES"]
