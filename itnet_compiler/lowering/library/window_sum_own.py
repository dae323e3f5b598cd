"""Library lowering of ``WindowSumOwn``: windows, and a product with the weights of each place."""

from __future__ import annotations

import torch

from ...ir.domain import Window
from ...ir.kernel import Spec
from ...ir.layout import Layout, labels_of, parse
from ...ir.window_sum import WindowSumOwn
from ..base import Lowered
from .window_sum import arranger_of, finished, padded

__all__ = ["KERNEL", "lower"]

KERNEL = WindowSumOwn


def lower(spec: Spec) -> Lowered:
    """One Python function, written for the layouts of the node."""
    kernel, window = spec.kernel, spec.domain
    assert isinstance(kernel, WindowSumOwn)
    assert isinstance(window, Window)
    if _is_elementwise(kernel, window):
        return _elementwise(spec, kernel, window)
    arranger = arranger_of(kernel, window, "windows", len(kernel.lead))
    put = arranger.lines.append
    put(f"windows = {arranger.arranged('input', _gathered(kernel))}")
    if any(low or high for low, high in window.padding):
        put(padded("windows", window))
    for place, (size, stride, step) in enumerate(zip(window.size, window.stride, window.dilation, strict=True)):
        every = f"[..., ::{step}]" if step > 1 else ""
        put(f"windows = windows.unfold({len(kernel.lead) + place}, {step * (size - 1) + 1}, {stride}){every}")
    gathered = [*kernel.lead]
    gathered += [axis.place or f"place {number}" for number, axis in enumerate(kernel.axes)]
    gathered += [axis.tap or f"tap {number}" for number, axis in enumerate(kernel.axes)]
    weight, output = labels_of(kernel.layouts["weight"]), labels_of(parse(kernel.output))
    letters = {label: chr(97 + number) for number, label in enumerate(dict.fromkeys([*gathered, *weight]))}
    terms = ["".join(letters[label] for label in group) for group in (gathered, weight, output)]
    factor = arranger.arranged("weight", tuple((label,) for label in weight))
    put(f"y = einsum('{terms[0]},{terms[1]}->{terms[2]}', windows, {factor})")
    layout: Layout = tuple((label,) for label in output)
    return finished(spec, arranger, layout, {"einsum": torch.einsum}, added=bool(kernel.bias))


def _gathered(kernel: WindowSumOwn) -> Layout:
    """The layout that windows are taken of."""
    return (*((label,) for label in kernel.lead), *kernel.along("source"))


def _is_elementwise(kernel: WindowSumOwn, window: Window) -> bool:
    """Whether ``im2col`` takes the windows, and nothing but taps is summed: no matrices worth multiplying."""
    labels = all(axis.place and axis.tap and axis.source for axis in kernel.axes)
    symmetric = all(low == high for low, high in window.padding)
    if window.rank != 2 or not labels or not symmetric:
        return False
    taps, output = {axis.tap for axis in kernel.axes}, set(labels_of(parse(kernel.output)))
    places = {axis.place for axis in kernel.axes}
    return set(kernel.lead) <= output and set(labels_of(kernel.layouts["weight"])) <= {*kernel.lead, *places, *taps}


def _elementwise(spec: Spec, kernel: WindowSumOwn, window: Window) -> Lowered:
    taps = [axis.tap for axis in kernel.axes]
    places = kernel.along("place")
    weight = set(labels_of(kernel.layouts["weight"]))
    # Samples first, as im2col has them; all other labels are channels to it.
    whole: Layout = (kernel.lead[:1], kernel.lead[1:], *kernel.along("source"))
    lead: Layout = tuple((label,) for label in kernel.lead)
    arranger = arranger_of(kernel, window, "windows", len(lead) + len(taps))
    put = arranger.lines.append
    put(f"x = {arranger.arranged('input', whole)}")
    numbers = [list(one) for one in (window.size, window.dilation, [low for low, _ in window.padding], window.stride)]
    counts = [
        f"(x.size({2 + place}) + {2 * pad - step * (size - 1) - 1}) // {stride} + 1"
        for place, (size, step, pad, stride) in enumerate(zip(*numbers, strict=True))
    ]
    extents = [*(arranger.extent(label) for label in kernel.lead), *map(str, window.size), *counts]
    put(f"windows = im2col(x, {', '.join(map(str, numbers))}).view({', '.join(extents)})")
    gathered: Layout = (*lead, *((tap,) for tap in taps), *places)
    aligned = tuple(axis if axis[0] in weight else () for axis in gathered)
    summed = [len(lead), len(lead) + 1]
    put(f"y = ({arranger.arranged('weight', aligned)} * windows).sum({summed})")
    scope = {"im2col": torch._C._nn.im2col}
    return finished(spec, arranger, (*lead, *places), scope, added=bool(kernel.bias))
