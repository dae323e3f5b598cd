"""Integrals of pair programs, tile by tile: no tensor over pairs of positions is ever whole in memory.

``operators`` registers ``torch.ops.itnet.pair_integral`` with its backward, which recomputes the kernel; ``plain``
runs them on tiles in plain torch, anywhere and always.
"""

from . import operators as operators
