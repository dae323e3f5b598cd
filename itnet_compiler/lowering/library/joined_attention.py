"""Library lowering of ``JoinedAttention``: a softmax, and a sum of products for each set of sources."""

from __future__ import annotations

from typing import Any

from ...ir.joined_attention import JoinedAttention
from ...ir.kernel import Spec
from ...ir.layout import Arranger, Layout, labels_of, ordered, parse
from ..attention_names import NAMES
from ..base import Lowered

__all__ = ["KERNEL", "lower"]

KERNEL = JoinedAttention


def lower(spec: Spec) -> Lowered:
    """One Python function, written for the layouts of the node."""
    kernel = spec.kernel
    assert isinstance(kernel, JoinedAttention)
    arranger = Arranger(kernel.layouts, dict(kernel.sizes))
    lines, layout = arranger.lines, kernel.layouts["scores"]
    place = layout.index(("j",))
    softmax = f"wide_softmax(scores.movedim({place}, -1)).movedim(-1, {place})" if kernel.wide else "softmax(scores, "
    lines.append(f"w = {softmax}" + ("" if kernel.wide else f"{place})"))
    if kernel.dropout:
        lines.append(f"w = dropout(w, {kernel.dropout!r}, True)")
    sizes = ", ".join(arranger.extent(label) for label in kernel.sets)
    lines.append(f"{', '.join(f'w{number}' for number in _numbers(kernel))}, = w.split([{sizes}], {place})")
    result: Layout = tuple((label,) for label in labels_of(parse(kernel.output)))
    for number, role, label in zip(_numbers(kernel), kernel.roles, kernel.sets, strict=True):
        own: Layout = tuple((label,) if axis == ("j",) else axis for axis in layout)
        product = _product(arranger, (f"w{number}", own), (role, kernel.layouts[role]), label, result)
        lines.append(f"y = {product}" if number == 1 else f"y = y + {product}")
    text = ordered(arranger.arranged("y", parse(kernel.output), layout=result), kernel.memory)
    lines.append(f"return {text}, w" if kernel.returns_weights else f"return {text}")
    body = "".join(f"    {line}\n" for line in lines)
    source = f"def integral({', '.join(spec.operands)}):\n{body}"
    scope: dict[str, Any] = dict(NAMES)
    exec(compile(source, "<itnet joined attention>", "exec"), scope)
    call = f"integral({', '.join(spec.operands)})"
    return Lowered(spec.operands, call, {"integral": scope["integral"]}, text=source)


def _numbers(kernel: JoinedAttention) -> range:
    return range(1, len(kernel.values) + 1)


def _product(
    arranger: Arranger, weights: tuple[str, Layout], value: tuple[str, Layout], label: str, result: Layout
) -> str:
    """Σ over ``label`` of two factors in the layout ``result``: one product of matrices."""
    first, second = (set(labels_of(layout)) for _, layout in (weights, value))
    both: Layout = tuple(axis for axis in result if axis[0] in first & second)
    rows = tuple(axis[0] for axis in result if axis[0] in first - second)
    columns = tuple(axis[0] for axis in result if axis[0] in second - first)
    sides = [
        arranger.arranged(name, target, layout=layout)
        for (name, layout), target in ((weights, (*both, rows, (label,))), (value, (*both, (label,), columns)))
    ]
    return arranger.arranged(f"matmul({', '.join(sides)})", result, layout=(*both, rows, columns))
