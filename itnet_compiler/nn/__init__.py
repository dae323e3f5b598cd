"""Layers and functions for building networks from integral transforms."""

from .function import KernelFunction, integral, kernel

__all__ = ["KernelFunction", "integral", "kernel"]
