"""Row loops on NVIDIA GPUs, in float32: one kernel for all steps, written for the step and compiled by Triton."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from types import ModuleType

from torch import Tensor

from ...ir.pair.program import SHARED, Program
from ...ir.row_reverse import reverse
from ..device import device_of
from ..tiled.block_kernels import PRELUDE
from ..tiled.files import module_of
from ..tiled.gpu import precision_of_products
from .block_code import RowCode, Streams, padded
from .problem import Problem, readable
from .segments import segments

__all__ = ["Gpu", "fits", "kernel_of", "launch"]

# Widest segments that a program holds in registers: of sixteen rows, which products need, and of one.
_WIDEST_OF_MANY, _WIDEST = 1024, 8192
# Most segments of a step: each is a line or more of the kernel.
_MOST = 2048


@lru_cache(maxsize=256)
def fits(program: Program, carried: int) -> bool:
    """Whether registers hold a step with so many carried values, and its reverse."""
    return all(map(_fits, (program, reverse(program, carried).program)))


def _fits(program: Program) -> bool:
    found = segments(program, ())
    return sum(map(len, found)) <= _MOST and _widest(program) <= (_WIDEST_OF_MANY if _multiplies(program) else _WIDEST)


def _multiplies(program: Program) -> bool:
    return any(value.op == "linear" for value in program.values)


@lru_cache(maxsize=256)
def _widest(program: Program) -> int:
    each = zip(segments(program, ()), program.sides, strict=True)
    return max((padded(stop - start) for parts, side in each if side != SHARED for start, stop in parts), default=1)


def launch(program: Program) -> dict[str, int]:
    """Rows of a program of the kernel, and how many warps it has."""
    widest = _widest(program)
    if _multiplies(program):
        return {"ROWS": 16, "num_warps": 8 if widest <= 256 else 16}
    rows = max(1, 128 // widest)
    return {"ROWS": rows, "num_warps": min(8, max(1, rows * widest // 128))}


@lru_cache(maxsize=256)
def kernel_of(streams: Streams) -> tuple[ModuleType, int]:
    """The module with the kernel, and how many numbers a row needs in memory, twice."""
    code = RowCode(streams)
    text = code.text()
    return module_of("rows", f"{PRELUDE}{text}"), code.room


class Gpu:
    """A ``Runner`` with its matrices in one piece."""

    def __init__(
        self, problem: Problem, program: Program, carried: Sequence[tuple[str, int]], written: tuple[int, ...]
    ) -> None:
        self.problem, self.program, self.written = problem, program, written
        names = {item.name: item.number for item in program.inputs}
        inside = {name for name, _ in carried}
        self.names = [name for name in names if name[0] != "w" and name not in inside]
        self.read = tuple(names[name] for name in self.names)
        shared = {number: problem.operand(name) for name, number in names.items() if name[0] == "w"}
        self.numbers, self.shared = tuple(shared), [one.detach().contiguous() for one in shared.values()]
        self.carried = tuple((names.get(name, -1), place) for name, place in carried)

    def run(
        self,
        streams: dict[str, Tensor],
        written: Sequence[Tensor],
        states: Sequence[Tensor],
        lasts: Sequence[Tensor],
        kept: Sequence[Tensor] = (),
        *,
        length: int,
        backwards: bool = False,
    ) -> None:
        """As ``Runner.run``."""
        rows, widths = self.problem.rows, self.problem.widths
        layout = Streams(
            self.program, self.carried, widths, self.read, self.numbers, self.written, bool(kept), backwards
        )
        module, room = kernel_of(layout)
        settings = launch(self.program)
        programs = math.ceil(rows / settings["ROWS"])
        given: list[Tensor | int] = []
        for tensor in map(readable, (streams[name] for name in self.names)):
            given += [tensor, tensor.stride(0), tensor.stride(1)]
        given += self.shared
        for tensor in written:
            given += [tensor, tensor.stride(0), tensor.stride(1)]
        scratch = states[0].new_empty((programs * settings["ROWS"] * 2, max(1, room)))
        with device_of(scratch):
            module.steps[(programs,)](
                *given,
                *states,
                *lasts,
                *kept,
                scratch,
                rows,
                length,
                PRECISION=precision_of_products(),
                **settings,
                num_stages=1,
                enable_fp_fusion=True,
            )
