"""Networks made of integral transforms."""

from .encoders import Encoded, Patches, Points, Tokens
from .itnet import ITNet

__all__ = ["Encoded", "ITNet", "Patches", "Points", "Tokens"]
