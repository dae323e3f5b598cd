"""The device that a kernel is launched on."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor

__all__ = ["device_of"]


def device_of(tensor: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Make the device of ``tensor`` the current one, as Triton launches kernels on that."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()
