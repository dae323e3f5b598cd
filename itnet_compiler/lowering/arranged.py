"""How a recurrence of a matrix runs on operands in the layouts of a loop: arranged, run, and arranged back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ir.arranged_state import TIME, ArrangedState
from ..ir.kernel import Spec
from ..ir.layout import Arranger, Layout, labels_of, parse
from .base import Lowered

__all__ = ["arranged"]


def arranged(spec: Spec, name: str, run: Callable[..., Any]) -> Lowered:
    """One Python function around ``run``, which is shown as ``name`` and takes the operands of ``MatrixState``."""
    kernel = spec.kernel
    assert isinstance(kernel, ArrangedState)
    arranger, arguments = Arranger(kernel.layouts, dict(kernel.sizes)), {}
    for role, target in kernel.targets.items():
        text = arranger.arranged(role, target) + _filled(kernel, role, arranger)
        if role == "value" and kernel.scale != 1.0:
            text += f" * {kernel.scale!r}"
        arguments[role] = text
    if "rate" in arguments:
        arguments["value"] += f" * {arguments.pop('rate')}"
    if kernel.constant is not None:
        arguments["decay"] = f"query.new_full(({arranger.extent(TIME)}, 1), {kernel.constant!r}, dtype=wide(query))"
    call = ", ".join(f"{role}={text}" for role, text in arguments.items())
    arranger.lines.append(f"y, last = {name}({call})")
    if kernel.constant is not None:
        arranger.lines.append("y, last = y.to(query.dtype), last.to(query.dtype)")
    labels = kernel.labels
    batch: Layout = tuple((label,) for label in labels.batch)
    result = arranger.arranged("y", parse(kernel.output), layout=(*batch, (TIME,), labels.features))
    if kernel.last is not None:
        state = (*batch, labels.channels, labels.features)
        moved = arranger.arranged("last", parse(kernel.last), layout=state)
        kept = labels_of(parse(kernel.last)) == labels_of(state)
        result += f", {moved}{'' if kept else '.contiguous()'}"
    body = "".join(f"    {line}\n" for line in [*arranger.lines, f"return {result}"])
    roles = ", ".join(spec.operands)
    source = f"def integral({roles}):\n{body}"
    scope: dict[str, Any] = {name: run, "wide": _wide}
    exec(compile(source, f"<itnet {name} {kernel.output}>", "exec"), scope)
    return Lowered(spec.operands, f"integral({roles})", {"integral": scope["integral"]}, text=source)


def _wide(tensor: Tensor) -> torch.dtype:
    """The dtype of a decay that must not be rounded to half precision."""
    return torch.promote_types(tensor.dtype, torch.float32)


def _filled(kernel: ArrangedState, role: str, arranger: Arranger) -> str:
    """The expansion of an operand along axes that it lacks and the recurrence needs."""
    places = kernel.filled(role)
    if not places:
        return ""
    extents = [
        " * ".join(arranger.extent(label) for label in axis) if place in places else "-1"
        for place, axis in enumerate(kernel.targets[role])
    ]
    return f".expand({', '.join(extents)})"
