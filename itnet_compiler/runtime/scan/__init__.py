"""Linear recurrences as custom operators ``torch.ops.itnet.*``; importing this package registers them.

``operators`` has their schemas, shapes and gradients; ``eager`` their arithmetic in plain torch, one step at a time;
the other modules the same arithmetic compiled for a device. Which of them runs is decided in ``backends``.
"""

from . import operators as operators
