"""Loops whose step treats every row of a batch alone, solved for all steps at once: ``torch.ops.itnet.newton_loop``."""

from . import operators

__all__ = ["operators"]
