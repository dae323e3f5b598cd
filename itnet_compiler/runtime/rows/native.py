"""Row loops in machine code for this CPU, in float32: rows are shared among threads."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...ir.pair.program import Program
from ..threads import share
from ..tiled.machine import compiled, lanes
from . import code
from .code import ARGUMENTS
from .problem import CHUNK, Problem, readable
from .steps import Steps

__all__ = ["Native"]

# Blocks of rows share one pass over a matrix.
_ROWS = 8


class Native:
    """A ``Runner`` with the weights packed as its machine code reads them."""

    def __init__(
        self, problem: Problem, program: Program, carried: Sequence[tuple[str, int]], written: tuple[int, ...]
    ) -> None:
        self.rows = problem.rows
        names = {item.name: item.number for item in program.inputs}
        vectors = [n for name, n in names.items() if name[0] == "w" and len(program.values[n].shape) < 2]
        matrices = list(dict.fromkeys(value.args[1] for value in program.values if value.op == "linear"))
        block = min(_ROWS, math.ceil(self.rows / torch.get_num_threads()))
        size = 1 << (block - 1).bit_length()
        self.shared = [_padded(problem.operand(str(program.values[number].attrs[0]))) for number in vectors]
        self.shared += [_panels(_matrix(problem, program, number), size) for number in matrices]
        inside = {name for name, _ in carried}
        self.names = [name for name in names if name[0] != "w" and name not in inside]
        taken = tuple(names[name] for name in self.names)
        places = tuple((names.get(name, -1), place) for name, place in carried)
        self.steps = Steps(program, places, problem.widths, taken, (*vectors, *matrices), written, size)

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
        given = [readable(streams[name]) for name in self.names]
        entries: list[int] = []
        for tensor in (*given, *self.shared, *written):
            entries += _entry(tensor, backwards)
        for place, (state, last) in enumerate(zip(states, lasts, strict=True)):
            entries += [*_entry(state), *_entry(last), *(_entry(kept[place]) if kept else (0, 0, 0))]
        table = (ctypes.c_int64 * len(entries))(*entries)
        address = ctypes.addressof(table)
        function, scratch = _compiled(self.steps)
        size = self.steps.rows
        blocks = math.ceil(self.rows / size)
        threads = min(torch.get_num_threads(), blocks)
        edges = [min(self.rows, blocks * part // threads * size) for part in range(threads + 1)]
        room = torch.zeros((threads, scratch))

        def work(part: int) -> None:
            function(address, edges[part], edges[part + 1], length, CHUNK, room[part].data_ptr())

        share(work, threads)


def _entry(tensor: Tensor, backwards: bool = False) -> tuple[int, int, int]:
    """Address of the first step, distances of steps and of rows; ``backwards`` begins with the last step."""
    if tensor.dim() < 3:
        return tensor.data_ptr(), 0, 0
    address, step, row = tensor.data_ptr(), tensor.stride(0), tensor.stride(1)
    if backwards:
        return address + (tensor.shape[0] - 1) * step * tensor.element_size(), -step, row
    return address, step, row


def _matrix(problem: Problem, program: Program, number: int) -> Tensor:
    value = program.values[number]
    if value.op == "input":
        return problem.operand(str(value.attrs[0])).detach()
    order: tuple[int, ...] = value.attrs[0]  # type: ignore[assignment]
    return _matrix(problem, program, value.args[0]).permute(order)


def _padded(vector: Tensor) -> Tensor:
    """With two vectors of lanes behind it, since parts of it are read whole."""
    flat_vector = vector.detach().reshape(-1)
    return torch.nn.functional.pad(flat_vector, (0, 2 * lanes()))


def _panels(matrix: Tensor, rows: int) -> Tensor:
    """(m, n) as (panels, n, entries of a panel), zeros behind the end."""
    stride = code.panel(matrix.shape[0], rows) * lanes()
    panels = math.ceil(matrix.shape[0] / stride)
    found = matrix.new_zeros((panels, matrix.shape[1], stride))
    for place in range(panels):
        part = matrix[place * stride : (place + 1) * stride]
        found[place, :, : part.shape[0]] = part.t()
    return found.view(-1)


@lru_cache(maxsize=256)
def _compiled(steps: Steps) -> tuple[Any, int]:
    return compiled(f"{_writer()}\n{steps}", ARGUMENTS, lambda: code.write(steps))


@cache
def _writer() -> str:
    """The source of what writes the code, which tells versions of it apart."""
    here = Path(__file__).parent
    return "".join((here / name).read_text(encoding="utf-8") for name in ("code.py", "places.py", "steps.py"))
