"""Layers and functions for building networks from integral transforms."""

from .block import ITNetBlock, Relaxed
from .function import KernelFunction, integral, kernel
from .kernels import FunctionKernel, MlpKernel
from .spectral import Spectral
from .transform import IntegralTransform, grid

__all__ = [
    "FunctionKernel",
    "ITNetBlock",
    "IntegralTransform",
    "KernelFunction",
    "MlpKernel",
    "Relaxed",
    "Spectral",
    "grid",
    "integral",
    "kernel",
]
