"""The runtime: generated code, variants, and the choice between them at every call."""

from . import newton as newton  # registers torch.ops.itnet.newton_loop
from . import rows as rows  # registers torch.ops.itnet.row_loop
from . import scan as scan  # registers torch.ops.itnet.*
from . import tiled as tiled  # registers torch.ops.itnet.pair_integral
