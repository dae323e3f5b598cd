"""Axis roles: which axes of every tensor in a graph count samples, positions or features (see ``analysis``)."""

from __future__ import annotations

from .algebra import AxisRole
from .analysis import Analysis, analyse, invalidate, is_weight, roles_of

__all__ = ["Analysis", "AxisRole", "analyse", "invalidate", "is_weight", "roles_of"]
