"""itnet: rewrite a PyTorch network so that every mixing layer is one learnable integral transform.

The public names of ``itnet_compiler``, nothing else.
"""

from itnet_compiler import *  # noqa: F403
from itnet_compiler import __all__, __version__  # noqa: F401
