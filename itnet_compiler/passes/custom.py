"""Calls of ``torch.autograd.Function``, kept in the graph as calls of the function itself, with its own backward.

The capture records them (``capture/custom_functions.py``) and notes what the passes may know of a forward: whether it
is elementwise, draws random numbers, or may return a view of an argument. No pass looks inside or moves such a call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["CustomCall"]


@dataclass(frozen=True)
class CustomCall:
    """What a graph node of a custom function calls: its ``apply``, with the arguments of the source.

    Attributes:
        function: The class.
        elementwise: Whether its forward computes each value from the values at the same place alone, and its results
            have the shape of its largest argument. Nothing is said of its backward.
        random: Whether its forward draws from a generator of torch's.
        views: Whether a result may share storage with an argument.
    """

    function: type[torch.autograd.Function]
    elementwise: bool
    random: bool
    views: bool

    def __post_init__(self) -> None:
        # What names of operators are made from.
        object.__setattr__(self, "__name__", self.function.__name__)
        object.__setattr__(self, "__module__", self.function.__module__)

    def __call__(self, *arguments: Any) -> Any:
        return self.function.apply(*arguments)

    def __str__(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"
