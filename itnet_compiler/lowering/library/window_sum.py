"""Library lowering of ``WindowSum``: a convolution."""

from __future__ import annotations

from typing import Any

import torch

from ...errors import LoweringError
from ...ir.domain import Window
from ...ir.kernel import Spec
from ...ir.layout import Arranger, Layout, labels_of, ordered, parse
from ...ir.window_sum import WindowSum
from ..base import Lowered

__all__ = ["KERNEL", "arranger_of", "finished", "lower", "padded"]

KERNEL = WindowSum

_CONVOLUTIONS = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}


def lower(spec: Spec) -> Lowered:
    """One Python function, written for the layouts of the node; ``LoweringError`` for windows in over three axes."""
    kernel, window = spec.kernel, spec.domain
    assert isinstance(kernel, WindowSum)
    assert isinstance(window, Window)
    if window.rank not in _CONVOLUTIONS:
        raise LoweringError("no library operator has windows in more than three axes")
    # Along the one axis of a source whose channels lie behind it, a convolution over two axes need not copy.
    own_input = labels_of(kernel.layouts["input"])
    flat = window.rank == 1 and own_input.index(kernel.axes[0].source or own_input[-1]) < len(own_input) - 1
    extra: Layout = ((),) if flat else ()
    arranger = arranger_of(kernel, window, "y", 2 + len(extra))
    lead, output = kernel.lead, labels_of(parse(kernel.output))
    taps = [axis.tap for axis in kernel.axes]
    weighted = [label for label in labels_of(kernel.layouts["weight"]) if label not in taps]
    batch = tuple(label for label in lead if label not in weighted)
    groups = tuple(label for label in weighted if label in lead and label in output)
    summed = tuple(label for label in weighted if label in lead and label not in output)
    features = tuple(label for label in weighted if label not in lead)
    put = arranger.lines.append
    put(f"x = {arranger.arranged('input', (batch, groups + summed, *extra, *kernel.along('source')))}")
    own: Layout = (groups + features, summed, *extra, *kernel.along("tap"))
    put(f"w = {arranger.arranged('weight', own)}")
    bias, added = "None", bool(kernel.bias)
    if kernel.bias and set(labels_of(kernel.layouts["bias"])) == {*groups, *features}:
        put(f"bias = {arranger.arranged('bias', (groups + features,))}")
        bias, added = "bias", False
    count = " * ".join(arranger.extent(label) for label in groups) or "1"
    padding = tuple(low for low, _ in window.padding)
    if any(low != high for low, high in window.padding):
        put(padded("x", window))
        padding = (0,) * window.rank
    numbers = [
        (filled,) * len(extra) + each for filled, each in ((1, window.stride), (0, padding), (1, window.dilation))
    ]
    name = f"conv{window.rank + len(extra)}d"
    put(f"y = {name}(x, w, {bias}, {numbers[0]}, {numbers[1]}, {numbers[2]}, {count})")
    layout: Layout = (batch, groups + features, *extra, *kernel.along("place"))
    return finished(spec, arranger, layout, {name: _CONVOLUTIONS[window.rank + len(extra)]}, added=added)


def arranger_of(kernel: WindowSum, window: Window, result: str, ahead: int) -> Arranger:
    """Only ``result`` tells how many places there are, behind ``ahead`` axes; the operands tell all else before."""
    known = dict(kernel.sizes) | {axis.tap: size for axis, size in zip(kernel.axes, window.size, strict=True)}
    return Arranger(kernel.layouts | {result: (*((),) * ahead, *kernel.along("place"))}, known)


def padded(name: str, window: Window) -> str:
    """The line that pads a source."""
    flat = tuple(side for pair in reversed(window.padding) for side in pair)  # the operator starts at the last axis
    return f"{name} = pad({name}, {flat})"


def finished(spec: Spec, arranger: Arranger, layout: Layout, scope: dict[str, Any], *, added: bool) -> Lowered:
    """The function of all lines; it returns ``y``, of ``layout``, in that of the node, a bias ``added``."""
    kernel = spec.kernel
    assert isinstance(kernel, WindowSum)
    text = arranger.arranged("y", parse(kernel.output), layout=layout)
    if added:
        text = f"({text} + {arranger.arranged('bias', parse(kernel.output))})"
    body = "".join(f"    {line}\n" for line in [*arranger.lines, f"return {ordered(text, kernel.memory)}"])
    arguments = ", ".join(spec.operands)
    source = f"def integral({arguments}):\n{body}"
    names = scope | {"pad": torch._C._nn.pad}
    exec(compile(source, f"<itnet windows {kernel.output}>", "exec"), names)
    return Lowered(spec.operands, f"integral({arguments})", {"integral": names["integral"]}, text=source)
