"""Library operators of the ``stationary`` family: conv, conv_transpose, avg_pool, max_pool, and ``pad`` before them."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import LoweringError
from ...ir.domain import Window
from ...ir.kernel import Spec
from ...ir.stationary import Stationary
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Stationary

_PADDING = {"zeros": "constant", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}


def lower(spec: Spec) -> Lowered:
    """The operator of the node's window, every attribute a literal. Raises ``LoweringError`` where there is none."""
    kernel, window = spec.kernel, spec.domain
    assert isinstance(kernel, Stationary)
    assert isinstance(window, Window)
    if kernel.weights == "learned":
        return _transposed(spec, kernel, window) if window.transposed else _convolution(spec, kernel, window)
    return _maximum(spec, kernel, window) if kernel.maximum else _average(spec, kernel, window)


def _convolution(spec: Spec, kernel: Stationary, window: Window) -> Lowered:
    function = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[window.rank]
    name = f"conv{window.rank}d"
    lows = tuple(low for low, _ in window.padding)
    padding: object = lows
    source = "input"
    namespace: dict[str, Any] = {name: function}
    if window.boundary == "zeros" and _symmetric(window):
        pass
    elif window.boundary == "zeros" and _is_same(window):
        padding = "same"
    else:
        padding = (0,) * window.rank
        source, namespace["pad"] = _padded(window), torch._C._nn.pad
    arguments = f"{source}, weight, {_bias(spec)}, {window.stride}, {padding!r}, {window.dilation}, {kernel.groups}"
    return Lowered(spec.operands, f"{name}({arguments})", namespace)


def _transposed(spec: Spec, kernel: Stationary, window: Window) -> Lowered:
    if not _symmetric(window) or window.boundary != "zeros":
        raise LoweringError("no library operator has a transposed window with asymmetric padding or a boundary rule")
    function = {1: torch.conv_transpose1d, 2: torch.conv_transpose2d, 3: torch.conv_transpose3d}[window.rank]
    lows = tuple(low for low, _ in window.padding)
    extra = window.output_padding or (0,) * window.rank
    name = f"conv_transpose{window.rank}d"
    arguments = f"input, weight, {_bias(spec)}, {window.stride}, {lows}, {extra}, {kernel.groups}, {window.dilation}"
    return Lowered(spec.operands, f"{name}({arguments})", {name: function})


def _average(spec: Spec, kernel: Stationary, window: Window) -> Lowered:
    source, padding, namespace = _pooled(window)
    name = f"avg_pool{window.rank}d"
    if any(step != 1 for step in window.dilation):
        raise LoweringError("no library operator averages a dilated window")
    arguments = f"{source}, {window.size}, {window.stride}, {padding}, {window.ceil_mode}, {kernel.count_include_pad}"
    if window.rank == 1:
        if kernel.divisor is not None:
            raise LoweringError("avg_pool1d has no divisor")
        return Lowered(spec.operands, f"{name}({arguments})", namespace | {name: torch.avg_pool1d})
    function = {2: torch._C._nn.avg_pool2d, 3: torch._C._nn.avg_pool3d}[window.rank]
    return Lowered(spec.operands, f"{name}({arguments}, {kernel.divisor})", namespace | {name: function})


def _maximum(spec: Spec, kernel: Stationary, window: Window) -> Lowered:
    source, padding, namespace = _pooled(window)
    if kernel.returns_indices and source != "input":
        raise LoweringError("the library's indices would point into the padded source")
    name = f"max_pool{window.rank}d" + ("_with_indices" if kernel.returns_indices else "")
    function = {
        "max_pool1d": torch.max_pool1d,
        "max_pool2d": torch.max_pool2d,
        "max_pool3d": torch.max_pool3d,
        "max_pool1d_with_indices": torch.max_pool1d_with_indices,
        "max_pool2d_with_indices": torch._C._nn.max_pool2d_with_indices,
        "max_pool3d_with_indices": torch._C._nn.max_pool3d_with_indices,
    }[name]
    arguments = f"{source}, {window.size}, {window.stride}, {padding}, {window.dilation}, {window.ceil_mode}"
    return Lowered(spec.operands, f"{name}({arguments})", namespace | {name: function})


def _pooled(window: Window) -> tuple[str, tuple[int, ...], dict[str, Any]]:
    """Source expression, the operator's own padding and the names used, for a pooling window."""
    if window.boundary == "zeros":
        if not _symmetric(window):
            raise LoweringError("no library operator pools a window with asymmetric padding")
        return "input", tuple(low for low, _ in window.padding), {}
    if window.ceil_mode:
        raise LoweringError("no library operator pools with a boundary rule and ceil_mode")
    return _padded(window), (0,) * window.rank, {"pad": torch._C._nn.pad}


def _padded(window: Window) -> str:
    flat = tuple(side for pair in reversed(window.padding) for side in pair)  # the operator starts at the last axis
    return f"pad(input, {flat}, {_PADDING[window.boundary]!r})"


def _bias(spec: Spec) -> str:
    return "bias" if "bias" in spec.operands else "None"


def _symmetric(window: Window) -> bool:
    return all(low == high for low, high in window.padding)


def _is_same(window: Window) -> bool:
    """Whether this is what ``padding="same"`` means: the odd position goes to the high side, and the stride is 1."""
    totals = (step * (size - 1) for size, step in zip(window.size, window.dilation, strict=True))
    same = tuple((total // 2, total - total // 2) for total in totals)
    return window.padding == same and all(step == 1 for step in window.stride)
