"""Modes: what a node of a graph runs under besides the mode of the caller (``with torch.no_grad():`` and its kin).

A mode is the tuple of the blocks around a node, outermost first; the empty tuple is the mode of the caller. Nodes
carry theirs as ``node.meta["mode"]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.fx import Node

from .sizes import dtype_name

__all__ = ["Autocast", "Block", "Grad", "Inference", "Mode", "describe_mode", "mode_of"]


@dataclass(frozen=True)
class Grad:
    """Gradients switched on or off."""

    enabled: bool

    def describe(self) -> str:
        """``no_grad`` or ``enable_grad``."""
        return "enable_grad" if self.enabled else "no_grad"

    def source(self) -> str:
        """The expression that makes the context manager."""
        return f"torch.set_grad_enabled({self.enabled})"


@dataclass(frozen=True)
class Inference:
    """Inference mode switched on or off."""

    enabled: bool

    def describe(self) -> str:
        """``inference_mode``, with ``(off)`` where it is switched off."""
        return "inference_mode" if self.enabled else "inference_mode(off)"

    def source(self) -> str:
        """The expression that makes the context manager."""
        return f"torch.inference_mode({self.enabled})"


@dataclass(frozen=True)
class Autocast:
    """Autocast of one device type.

    Attributes:
        device: ``cpu``, ``cuda`` …
        dtype: What operators are cast to.
        enabled: Whether it casts at all.
        cache: Whether casts of parameters are kept until the outermost block ends; None for the caller's choice.
        number: Counts the blocks of a graph: each has casts of its own.
    """

    device: str
    dtype: torch.dtype
    enabled: bool
    cache: bool | None = None
    number: int = 0

    def describe(self) -> str:
        """``autocast(cpu, bf16)`` or ``autocast(cpu, off)``."""
        return f"autocast({self.device}, {dtype_name(self.dtype) if self.enabled else 'off'})"

    def source(self) -> str:
        """The expression that makes the context manager."""
        return f"torch.autocast({self.device!r}, {self.dtype}, {self.enabled}, {self.cache})"


Block = Grad | Inference | Autocast
Mode = tuple[Block, ...]


def mode_of(node: Node) -> Mode:
    """The mode that ``node`` runs under; empty where it is the caller's."""
    mode: Mode = node.meta.get("mode", ())
    return mode


def describe_mode(mode: Mode) -> str:
    """``no_grad, autocast(cpu, bf16)``, outermost first."""
    return ", ".join(block.describe() for block in mode) or "the mode of the caller"
