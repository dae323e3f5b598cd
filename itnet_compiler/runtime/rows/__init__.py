"""Loops whose step treats every row of a batch alone, all steps in one operator: ``torch.ops.itnet.row_loop``."""

from . import operators

__all__ = ["operators"]
