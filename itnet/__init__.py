"""itnet: rewrite a PyTorch network so that every mixing layer is one learnable integral transform.

The public names of ``itnet_compiler``, nothing else.
"""

import sys

from itnet_compiler import *  # noqa: F403
from itnet_compiler import __all__, __version__, models, nn  # noqa: F401

# So that ``from itnet.nn import …`` works, and is the same module.
sys.modules["itnet.nn"], sys.modules["itnet.models"] = nn, models
