"""A compiler-style graph-rewriting framework: convolution, attention and recurrence as one integral transform.

An independent implementation of the idea of ITNet (arXiv 2606.19538), not affiliated with its authors.
"""

from .errors import CaptureError, InputError, ItnetError, LoweringError, ModelError, VerificationError
from .ir.integral import Integral
from .runtime.tiled import operators as _operators  # noqa: F401  (registers torch.ops.itnet.pair_integral)
from .unified import Unified
from .unify import lower, unify
from .version import __version__

__all__ = [
    "CaptureError",
    "InputError",
    "Integral",
    "ItnetError",
    "LoweringError",
    "ModelError",
    "Unified",
    "VerificationError",
    "__version__",
    "lower",
    "unify",
]
