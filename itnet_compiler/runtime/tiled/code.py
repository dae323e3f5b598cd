"""``torch.ops.itnet.integrate_code``: what runs a tiled integral, for readers."""

from __future__ import annotations

import torch

from ...ir.pair.program import QUERY, SHARED, SOURCE, Program
from ...ir.pair.split import distribute, stages
from ...lowering.tiled import listing
from .backends import choice
from .integrate import LIBRARY, with_measure
from .problem import Problem, wide

__all__ = ["integrate_code"]

LIBRARY.define(
    "integrate_code(str program, bool normalise, bool measured, bool masked, int heads, int width, ScalarType dtype,"
    " str device) -> str"
)


def integrate_code(
    program: str,
    normalise: bool,
    measured: bool,
    masked: bool,
    heads: int,
    width: int,
    dtype: torch.dtype,
    device: str,
) -> str:
    """The stages of a program, then the code that evaluates what is left for each pair.

    Args:
        program: Text of a pair program of one output.
        normalise: Whether weights are a softmax.
        measured: Whether sources have a measure.
        masked: Whether there is a mask.
        heads: H.
        width: V.
        dtype: Of the values.
        device: Type of the device.
    """
    parsed = Program.parse(program)
    if measured and normalise:
        parsed = with_measure(parsed)
    problem = _problem(stages(distribute(parsed)).core, normalise, masked, (heads, width), dtype)
    module, reasons = choice(problem, device)
    how = f"# in plain torch, tile by tile: {'; '.join(reasons)}\n" if reasons else module.code(problem)
    return f"{listing(parsed)}\n{how}"


def _problem(core: Program, normalise: bool, masked: bool, sizes: tuple[int, int], dtype: torch.dtype) -> Problem:
    """A call of one query and one source, without memory."""
    (heads, width), kind = sizes, wide(dtype)

    def empty(*shape: int, dtype: torch.dtype = kind) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    given: dict[int, dict[str, torch.Tensor]] = {QUERY: {}, SOURCE: {}, SHARED: {}}
    for item in core.inputs:
        given[item.side][item.name] = empty(*(() if item.side == SHARED else (1, 1)), *item.shape)
    mask = empty(1, 1, 1, dtype=torch.bool) if masked else None
    half = dtype if dtype in (torch.bfloat16, torch.float16) else None
    groups = given[QUERY], given[SOURCE], given[SHARED]
    return Problem(core, empty(1, heads, 1, width), *groups, mask, 1, normalise, None, None, half)


LIBRARY.impl("integrate_code", integrate_code, "CompositeImplicitAutograd")
