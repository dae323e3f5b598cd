"""Integrals of pair programs, tile by tile: no tensor over pairs of positions is ever whole in memory.

``integrate`` registers ``torch.ops.itnet.integrate``, which evaluates what is of one side and hands the rest to
``torch.ops.itnet.pair_integral`` (``operators``), whose backward recomputes the kernel. Back ends: ``plain``, tiles in
plain torch, anywhere and always; ``native``, machine code for this CPU; ``gpu``, Triton.
``torch.ops.itnet.integrate_code`` (``code``) shows what runs.
"""

from . import code as code
from . import integrate as integrate
from . import operators as operators
