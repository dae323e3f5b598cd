"""A compiler-style graph-rewriting framework: convolution, attention and recurrence as one integral transform.

An independent implementation of the idea of ITNet (arXiv 2606.19538), not affiliated with its authors.
"""

from . import models, nn
from .errors import CaptureError, InputError, ItnetError, KernelError, LoweringError, ModelError, VerificationError
from .ir.integral import Integral
from .nn import kernel
from .unified import Unified
from .unify import lower, unify
from .version import __version__

__all__ = [
    "CaptureError",
    "InputError",
    "Integral",
    "ItnetError",
    "KernelError",
    "LoweringError",
    "ModelError",
    "Unified",
    "VerificationError",
    "__version__",
    "kernel",
    "lower",
    "models",
    "nn",
    "unify",
]
