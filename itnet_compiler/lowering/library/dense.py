"""Library operators of the ``dense`` family: adaptive pooling, interpolation, mean, sum and amax."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...errors import LoweringError
from ...ir.dense import Dense
from ...ir.domain import Grid
from ...ir.kernel import Spec
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Dense

_nn = torch._C._nn

_ADAPTIVE: dict[str, Callable[..., Any]] = {
    "adaptive_avg_pool1d": torch.adaptive_avg_pool1d,
    "adaptive_avg_pool2d": _nn.adaptive_avg_pool2d,
    "adaptive_avg_pool3d": _nn.adaptive_avg_pool3d,
    "adaptive_max_pool1d": torch.adaptive_max_pool1d,
    "adaptive_max_pool2d": _nn.adaptive_max_pool2d,
    "adaptive_max_pool3d": _nn.adaptive_max_pool3d,
}

# By weights, rank and antialias. All take (input, output_size, [align_corners,] scale_factors).
_INTERPOLATE: dict[tuple[str, int, bool], Callable[..., Any]] = {
    ("nearest", 1, False): _nn.upsample_nearest1d,
    ("nearest", 2, False): _nn.upsample_nearest2d,
    ("nearest", 3, False): _nn.upsample_nearest3d,
    ("nearest-exact", 1, False): _nn._upsample_nearest_exact1d,
    ("nearest-exact", 2, False): _nn._upsample_nearest_exact2d,
    ("nearest-exact", 3, False): _nn._upsample_nearest_exact3d,
    ("linear", 1, False): _nn.upsample_linear1d,
    ("linear", 2, False): _nn.upsample_bilinear2d,
    ("linear", 3, False): _nn.upsample_trilinear3d,
    ("cubic", 2, False): _nn.upsample_bicubic2d,
    ("linear", 2, True): _nn._upsample_bilinear2d_aa,
    ("cubic", 2, True): _nn._upsample_bicubic2d_aa,
}


def lower(spec: Spec) -> Lowered:
    """The operator of the node, with every attribute a literal. Raises ``LoweringError`` where there is none."""
    kernel, grid = spec.kernel, spec.domain
    assert isinstance(kernel, Dense)
    assert isinstance(grid, Grid)
    if kernel.weights == "uniform":
        return _uniform(spec, kernel)
    size = "output_size" if "output_size" in spec.operands else repr(kernel.output_size)
    if kernel.weights == "adaptive":
        return _adaptive(spec, kernel, grid.rank, size)
    return _interpolation(spec, kernel, grid.rank, size)


def _uniform(spec: Spec, kernel: Dense) -> Lowered:
    if kernel.returns_indices:
        return Lowered(spec.operands, f"max(input, {kernel.axes[0]}, {kernel.keepdim})", {"max": torch.max})
    function = torch.amax if kernel.maximum else torch.mean if kernel.mean else torch.sum
    name = function.__name__
    return Lowered(spec.operands, f"{name}(input, {kernel.axes}, {kernel.keepdim})", {name: function})


def _adaptive(spec: Spec, kernel: Dense, rank: int, size: str) -> Lowered:
    name = f"adaptive_{'max' if kernel.maximum else 'avg'}_pool{rank}d"
    pick = "[0]" if kernel.maximum and not kernel.returns_indices else ""
    return Lowered(spec.operands, f"{name}(input, {size}){pick}", {name: _ADAPTIVE[name]})


def _interpolation(spec: Spec, kernel: Dense, rank: int, size: str) -> Lowered:
    function = _INTERPOLATE.get((kernel.weights, rank, kernel.antialias))
    if function is None:
        raise LoweringError(f"no library operator interpolates {kernel.weights} over {rank} axes")
    if kernel.scales is not None and size != "None":
        raise LoweringError("the library takes an output size or scales, not both")
    aligned = "" if kernel.weights.startswith("nearest") else f"{kernel.align_corners}, "
    name = function.__name__
    return Lowered(spec.operands, f"{name}(input, {size}, {aligned}{kernel.scales})", {name: function})
