"""Library lowering of ``Separable``: two products in the order that costs less; a causal sum in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ir.kernel import Spec
from ...ir.layout import Arranger, Layout, ordered, parse
from ...ir.separable import Separable
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = Separable

# Positions whose pairs are multiplied out; of earlier chunks Σ k ⊗ v alone is kept.
_CHUNK = 64


def lower(spec: Spec) -> Lowered:
    """One Python function, written for the layouts of the node."""
    kernel = spec.kernel
    assert isinstance(kernel, Separable)
    labels = kernel.labels
    arranger = Arranger(kernel.layouts, dict(kernel.sizes))
    batch: Layout = tuple((label,) for label in labels.batch)
    pairs = (*batch, labels.queries, labels.keys)
    targets = {
        "q": ("query", (*batch, labels.queries, labels.channels)),
        "k": ("key", (*batch, labels.keys, labels.channels) if kernel.query else pairs),
        "v": ("value", (*batch, labels.keys, labels.features)),
        "m": ("mask", pairs),
    }
    for name, (role, target) in targets.items():
        if role in kernel.layouts:
            text = arranger.arranged(role, target)
            arranger.lines.append(f"{name} = {text}")
    if kernel.softmaxed:
        arranger.lines.append("k = softmax(k, -2)")
    if kernel.scale != 1.0:
        arranger.lines.append(f"k = k * {kernel.scale!r}")
    if kernel.averaged:
        arranger.lines.append(f"k = k / max(k.size({-2 if kernel.query else -1}), 1)")
    if kernel.mask:
        arranger.lines.append(f"m = {'(~m)' if kernel.hides else 'm'}.to(k.dtype){'.tril()' if kernel.causal else ''}")
    if kernel.normalised:
        arranger.lines.append("v = pad(v, (0, 1), value=1.0)  # the last feature sums the weights")
    if not kernel.query:
        text = "matmul(k * m, v)" if kernel.mask else "matmul(k, v)"
    elif kernel.mask:
        text = "matmul(matmul(q, k.mT) * m, v)"
    else:
        text = "past(q, k, v)" if kernel.causal else "paired(q, k, v)"
    arranger.lines.append(f"y = {text}")
    if kernel.normalised:
        total = "y[..., -1:]" + (f".clamp_min({kernel.eps!r})" if kernel.clamped else "")
        total = f"({total} + {kernel.eps!r})" if kernel.eps and not kernel.clamped else total
        arranger.lines.append(f"y = y[..., :-1] / {total}")
    result = arranger.arranged("y", parse(kernel.output), layout=(*batch, labels.queries, labels.features))
    body = "".join(f"    {line}\n" for line in [*arranger.lines, f"return {ordered(result, kernel.memory)}"])
    arguments = ", ".join(spec.operands)
    source = f"def integral({arguments}):\n{body}"
    scope: dict[str, Any] = dict(_NAMES)
    exec(compile(source, f"<itnet separable {kernel.output}>", "exec"), scope)
    return Lowered(spec.operands, f"integral({arguments})", {"integral": scope["integral"]}, text=source)


def _paired(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Σ_j (q·k_j) v_j: (…, I, C), (…, J, C), (…, J, E) → (…, I, E)."""
    (i, c), (j, e) = q.shape[-2:], v.shape[-2:]
    if i * j * (c + e) < (i + j) * c * e:
        return _matmul(_matmul(q, k.mT), v)
    return _matmul(q, _matmul(k.mT, v))


def _past(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Σ_{j ≤ i} (q·k_j) v_j, J = I: pairs within chunks, one matrix Σ k ⊗ v for all chunks before."""
    length = q.shape[-2]
    if length <= 2 * _CHUNK:
        return _matmul(_matmul(q, k.mT).tril(), v)
    short = -length % _CHUNK
    q, k, v = (_pad(x, (0, 0, 0, short)).unflatten(-2, (-1, _CHUNK)) for x in (q, k, v))
    sums = _matmul(k.mT, v).cumsum(-3)
    before = _pad(sums[..., :-1, :, :], (0, 0, 0, 0, 1, 0))
    y = _matmul(_matmul(q, k.mT).tril(), v) + _matmul(q, before)
    return y.flatten(-3, -2)[..., :length, :]


_matmul = torch._C._VariableFunctions.matmul
_pad = torch._C._nn.pad
_softmax = torch._C._VariableFunctions.softmax
_NAMES = {"matmul": _matmul, "pad": _pad, "softmax": _softmax, "paired": _paired, "past": _past}
